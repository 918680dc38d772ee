//! Whenever a message has a key, the parsers that handlers use find the very value there that the key is of: serde_json, SQLite,
//! Postgres (`json` and `jsonb`). They may refuse the payload; they must not read another value from it.

use onceward::{Key, KeyExtractor, KeySource, KeyText, Message, Scope};
use onceward_test_servers::postgres::Postgres;
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::{Connection as _, PgConnection, Row as _, SqliteConnection};

/// Where the key is, for each of the parsers.
struct Place {
    pointer: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

const PLACES: [Place; 3] = [
    Place { pointer: "/id", sqlite: "$.id", postgres: "{id}" },
    Place { pointer: "/order/id", sqlite: "$.order.id", postgres: "{order,id}" },
    Place { pointer: "/lines/1/id", sqlite: "$.lines[1].id", postgres: "{lines,1,id}" },
];

fn extractor(pointer: &str) -> KeyExtractor {
    let scope = Scope::parse("billing").expect("a scope");
    KeyExtractor::new(&scope, vec![KeySource::JsonPointer(pointer.into())])
}

/// Documents with all that parsers are known to read differently, and plain ones.
struct Documents(fastrand::Rng);

impl Documents {
    fn one_of<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        texts[self.0.usize(..texts.len())]
    }

    fn value(&mut self) -> String {
        match self.0.u8(..16) {
            0..5 => self.0.i64(-1_000..1_000).to_string(),
            5..7 => self.0.i64(..).to_string(),
            7 => {
                let numbers =
                    ["7.0", "7e0", "70e-1", "-0", "0.0", "1e400", "7.00", "07", "+7", "0x7", "NaN", "1.5"];
                self.one_of(&numbers).into()
            }
            8 => self.one_of(&["true", "false", "null", "[7]", "{}", r#"{"id":7}"#, "tru", "'a'"]).into(),
            _ => format!("\"{}\"", self.text()),
        }
    }

    fn text(&mut self) -> String {
        let plain = [
            "a",
            "A",
            "7",
            " ",
            "é",
            "e\u{301}",
            "\u{1f600}",
            r"\ud83d\ude00",
            r"\u0061",
            r"\n",
            r"\/",
            r"\\",
            r#"\""#,
            "\u{feff}",
            "\u{2028}",
            "\u{fffd}",
            r"\u00e9",
            r"\u001f",
        ];
        let odd = [r"\u0000", r"\ud800", r"\udc00", r"\x41", "\t", "\0", "\""];
        let part = |own: &mut Self| if own.rarely() { own.one_of(&odd) } else { own.one_of(&plain) };
        (0..self.0.usize(..4)).map(|_| part(self)).collect()
    }

    fn rarely(&mut self) -> bool {
        self.0.u8(..24) == 0
    }

    fn name(&mut self, wanted: &'static str) -> String {
        let escaped =
            wanted.replacen(['i', 'o'], if wanted.starts_with('o') { r"\u006f" } else { r"\u0069" }, 1);
        match self.0.u8(..40) {
            0..12 => format!("\"{wanted}\""),
            12 => format!("\"{escaped}\""),
            13 => format!("\"{}\"", wanted.to_uppercase()),
            14 => format!(r#""{wanted}\u0000""#),
            15 => format!(r#""{wanted}\u0000x""#),
            16 => format!(r#""{wanted}\ud800""#),
            17 if self.rarely() => wanted.into(),
            18 if self.rarely() => format!("'{wanted}'"),
            _ => format!("\"{}\"", self.text()),
        }
    }

    fn space(&mut self) -> &'static str {
        if self.rarely() {
            self.one_of(&[" ", "\n", "\t", " \r\n", "\u{b}", "\u{c}", "\u{a0}", "/**/"])
        } else {
            ""
        }
    }

    fn object(&mut self, wanted: &'static str, value: &mut dyn FnMut(&mut Self) -> String) -> String {
        let members: Vec<_> = (0..self.0.usize(1..4))
            .map(|_| {
                let name = self.name(wanted);
                let value = if self.0.bool() { value(self) } else { self.value() };
                format!("{}{name}{}:{value}", self.space(), self.space())
            })
            .collect();
        let end = if self.rarely() { self.one_of(&[",}", "", "}}", "]"]) } else { "}" };
        format!("{{{}{end}", members.join(","))
    }

    fn next(&mut self, place: usize) -> Vec<u8> {
        let text = match place {
            0 => self.object("id", &mut Self::value),
            1 => self.object("order", &mut |own| own.object("id", &mut Self::value)),
            _ => self.object("lines", &mut |own| {
                format!("[{},{}]", own.value(), own.object("id", &mut Self::value))
            }),
        };
        let start = if self.rarely() { self.one_of(&[" ", "\u{feff}"]) } else { "" };
        let end = if self.rarely() { self.one_of(&["\n", " x", "\0", "{}"]) } else { "" };
        let mut bytes = format!("{start}{text}{end}").into_bytes();
        if self.0.u8(..16) == 0 {
            let at = self.0.usize(..bytes.len());
            bytes[at] = self.0.u8(..);
        }
        bytes
    }
}

/// Documents with a key, for each place.
fn documents(seed: u64) -> Vec<(&'static Place, String, Key)> {
    let mut documents = Documents(fastrand::Rng::with_seed(seed));
    let (mut found, mut refused) = (Vec::new(), 0);
    for (index, place) in PLACES.iter().enumerate() {
        let keys = extractor(place.pointer);
        for _ in 0..4_000 {
            let payload = documents.next(index);
            match keys.key_of(&Message::builder(payload.clone()).build()) {
                Ok(key) => found.push((place, String::from_utf8(payload).expect("it has a key"), key)),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(found.len() > 500 && refused > 500, "{} have a key, {refused} have none", found.len());
    found
}

/// The key of what a parser has found.
fn key_of(place: &Place, value: KeyText<'_>) -> Option<Key> {
    extractor(place.pointer).keys_from_text(0, &[value]).ok()?.pop()
}

#[track_caller]
fn assert_same(parser: &str, place: &Place, payload: &str, key: Key, found: KeyText<'_>) {
    assert_eq!(
        key_of(place, found),
        Some(key),
        "{parser} finds {found:?} at {} of {payload:?}",
        place.pointer
    );
}

#[test]
fn serde_json_finds_the_value_that_the_key_is_of() {
    for (place, payload, key) in documents(1) {
        let grammar = serde_json::from_str::<&RawValue>(&payload);
        assert!(grammar.is_ok(), "a key of {payload:?}, which is not JSON: {grammar:?}");
        // Half of a surrogate pair or a number beyond 1e308, beside the key, is valid and no `Value`.
        let Ok(document) = serde_json::from_str::<Value>(&payload) else { continue };
        match document.pointer(place.pointer).expect("a value") {
            Value::String(text) => assert_same("serde_json", place, &payload, key, KeyText::Text(text)),
            // Larger ones are floating point there.
            Value::Number(number) if number.is_f64() => {}
            other => assert_same("serde_json", place, &payload, key, KeyText::Literal(&other.to_string())),
        }
    }
}

#[tokio::test]
async fn sqlite_finds_the_value_that_the_key_is_of() {
    let mut database = SqliteConnection::connect("sqlite::memory:").await.expect("a database");
    let mut compared = 0;
    for (place, payload, key) in documents(2) {
        let query = sqlx::query("SELECT json_type($1, $2), CAST(json_extract($1, $2) AS TEXT)");
        let Ok(row) = query.bind(&payload).bind(place.sqlite).fetch_one(&mut database).await else {
            continue;
        };
        let (kind, text): (Option<String>, Option<String>) = (row.get(0), row.get(1));
        let text = text.unwrap_or_default();
        let found = match kind.as_deref() {
            Some("text") => KeyText::Text(&text),
            Some("integer") => KeyText::Literal(&text),
            Some("true") => KeyText::Literal("true"),
            Some("false") => KeyText::Literal("false"),
            other => panic!("SQLite finds {other:?} at {} of {payload:?}", place.sqlite),
        };
        assert_same("SQLite", place, &payload, key, found);
        compared += 1;
    }
    assert!(compared > 400, "SQLite reads {compared} of the documents");
}

#[tokio::test]
async fn postgres_finds_the_value_that_the_key_is_of() {
    let server = tokio::task::spawn_blocking(Postgres::shared).await.expect("a server");
    let mut database = PgConnection::connect(&server.url("postgres")).await.expect("a connection");
    for query in [
        "SELECT json_typeof($1::json #> $2::text[]), $1::json #>> $2::text[]",
        "SELECT jsonb_typeof($1::jsonb #> $2::text[]), $1::jsonb #>> $2::text[]",
    ] {
        let mut compared = 0;
        for (place, payload, key) in documents(3) {
            let asked = sqlx::query(query).bind(&payload).bind(place.postgres).fetch_one(&mut database).await;
            let Ok(row) = asked else { continue };
            let (kind, text): (Option<String>, Option<String>) = (row.get(0), row.get(1));
            let text = text.unwrap_or_default();
            let found = match kind.as_deref() {
                Some("string") => KeyText::Text(&text),
                Some("number" | "boolean") => KeyText::Literal(&text),
                other => panic!("Postgres finds {other:?} at {} of {payload:?}", place.postgres),
            };
            assert_same(query, place, &payload, key, found);
            compared += 1;
        }
        assert!(compared > 400, "Postgres reads {compared} of the documents");
    }
}
