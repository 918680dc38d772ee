//! Checks that a key is derived from the value that every reader of the message finds, or not at all.

use proptest::prelude::*;
use serde_json::Value;

use super::json::{is_plain_integer, scalar_at};
use super::{Fingerprint, Fingerprinting, KeyError, Scope};
use crate::extract::{KeyExtractor, KeySource};
use crate::message::Message;

fn key(payload: impl AsRef<[u8]>, pointer: &str) -> Result<String, KeyError> {
    scalar_at(payload.as_ref(), pointer).map(|bytes| String::from_utf8(bytes).unwrap())
}

fn is_ambiguous(payload: impl AsRef<[u8]>, pointer: &str) -> bool {
    match key(payload, pointer) {
        Err(KeyError::Ambiguous { source, .. }) => {
            assert_eq!(source, format!("json:{pointer}"));
            true
        }
        _ => false,
    }
}

fn extractor(sources: &[&str]) -> KeyExtractor {
    let sources = sources.iter().map(|source| KeySource::parse(source).unwrap()).collect();
    KeyExtractor::new(&Scope::parse("billing").unwrap(), sources)
}

#[test]
fn what_stands_beside_the_way_to_the_value_is_no_obstacle() {
    for payload in [
        r#"{"id":20,"\ud800":1}"#,
        r#"{"\ud800":{"id":3},"id":20}"#,
        r#"{"x":"\ud800","id":20}"#,
        r#"{"x":["]","}",{"id":4}],"y":"\"id\":5","\u0069d":20}"#,
        " { \"\" : { } , \"id\"\t:\n20 } ",
        r#"{"x":{"id":1,"id":2},"y":{"ID":3},"id":20,"x":1}"#,
        r#"{"x":1e999,"id":20,"y":-0.0e-7}"#,
    ] {
        assert_eq!(key(payload, "/id").as_deref(), Ok("n20"), "{payload}");
    }
    let deep = format!(r#"{{"x":{}{},"id":20}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(key(deep, "/id").as_deref(), Ok("n20"));
}

#[test]
fn a_pointer_leads_through_objects_and_arrays() {
    assert_eq!(key(r#"{"a":[[],{"b":"x"},true]}"#, "/a/1/b").as_deref(), Ok("sx"));
    assert_eq!(key(r#"{"a":[[],{"b":"x"},true]}"#, "/a/2").as_deref(), Ok("btrue"));
    assert_eq!(key(r#" [ 7 ] "#, "/0").as_deref(), Ok("n7"));
    assert_eq!(key(r#"{"a/b":{"~":"1.50"}}"#, "/a~1b/~0").as_deref(), Ok("s1.50"));
    assert_eq!(key(r#"{"":{"":1}}"#, "//").as_deref(), Ok("n1"));
    for pointer in ["/a/3", "/a/01", "/a/-0", "/a/x", "/a/-", "/b", "/a/1/b/c", "/a/1/b/0"] {
        assert_eq!(key(r#"{"a":[[],{"b":"x"},true]}"#, pointer), Err(KeyError::Missing), "{pointer}");
    }
    for payload in [r#"{"a":null}"#, r#"{"a":""}"#, "{}", "[]", "7", r#""a""#, "null"] {
        assert_eq!(key(payload, "/a"), Err(KeyError::Missing), "{payload}");
    }
    for payload in [r#"{"a":{}}"#, r#"{"a":["x"]}"#] {
        assert_eq!(key(payload, "/a"), Err(KeyError::NotScalar), "{payload}");
    }
}

#[test]
fn a_name_that_occurs_twice_on_the_path_gives_no_key() {
    for payload in [
        r#"{"id":"victim","id":"r1"}"#,
        r#"{"id":"same","id":"same"}"#,
        r#"{"id":"victim","x":0,"\u0069d":"r1"}"#,
        r#"{"\u0069\u0064":"victim","i\u0064":"r1"}"#,
        r#"{"id":null,"id":"r1"}"#,
        r#"{"id":"r1","id":{"id":"victim"}}"#,
        r#"{"id":"victim","ID":"r1"}"#,
        r#"{"Id":"victim","id":"r1"}"#,
        r#"{"id":"victim","id\u0000x":"r1"}"#,
        r#"{"id\u0000":"victim","id":"r1"}"#,
        r#"{"i\ud800d":"victim","id":"r1"}"#,
        // No name as wanted, and one that other readers take for it.
        r#"{"ID":"victim"}"#,
        r#"{"id\u0000x":"victim"}"#,
    ] {
        assert!(is_ambiguous(payload, "/id"), "{payload}");
        let inside = format!(r#"{{"order":{payload}}}"#);
        assert!(is_ambiguous(inside, "/order/id"), "{payload}");
    }
    assert!(is_ambiguous(r#"{"a":{"id":1},"a":[]}"#, "/a/id"));
    assert!(is_ambiguous(r#"{"a":{"id":1},"A":{"id":2}}"#, "/a/id"));
    assert!(is_ambiguous(r#"[{"id":1,"id":2}]"#, "/0/id"));
    // Letter case outside ASCII: capitals that letters share, and a letter that has none in ASCII.
    assert!(is_ambiguous("{\"key\":1,\"\u{212a}ey\":2}", "/key"));
    assert!(is_ambiguous("{\"sum\":1,\"\u{17f}um\":2}", "/sum"));
    assert!(is_ambiguous("{\"größe\":1,\"GRÖSSE\":2}", "/größe"));
    assert!(is_ambiguous("{\"\u{e9}\":1,\"\u{c9}\":2}", "/\u{e9}"));
    // In other objects than those on the path names may repeat.
    assert_eq!(key(r#"{"id":1,"x":2,"x":3}"#, "/id").as_deref(), Ok("n1"));
    assert_eq!(key(r#"{"id":1,"idx":2,"i":3,"di":4}"#, "/id").as_deref(), Ok("n1"));
}

#[test]
fn a_number_is_a_key_in_one_notation_only() {
    for id in ["7", "-7", "0", "10", "9007199254740993", "-12345678901234567890123456789012345678901"] {
        assert_eq!(key(format!(r#"{{"id":{id}}}"#), "/id"), Ok(format!("n{id}")));
        assert_eq!(key(format!(r#"{{"id":"{id}"}}"#), "/id"), Ok(format!("s{id}")));
    }
    for id in ["7.0", "7e0", "7E0", "70e-1", "0.7e1", "7.5", "1e400", "-0", "-0.0", "0.0", "0e0"] {
        assert!(is_ambiguous(format!(r#"{{"id":{id}}}"#), "/id"), "{id}");
        assert_eq!(key(format!(r#"{{"id":"{id}"}}"#), "/id"), Ok(format!("s{id}")), "as text it is a text");
    }
    for text in ["", "-", "01", "-01", "+1", " 1", "1 ", "1_0", "0x1", "\u{661}"] {
        assert!(!is_plain_integer(text), "{text:?}");
    }
}

#[test]
fn text_that_some_readers_cut_or_change_is_no_key() {
    for id in [r"a\u0000", r"\u0000a", r"a\u0000b", r"\ud800", r"a\udc00b", r"\ude00\ud83d"] {
        assert!(is_ambiguous(format!(r#"{{"id":"{id}"}}"#), "/id"), "{id}");
    }
    assert_eq!(key(r#"{"id":"\ud83d\ude00"}"#, "/id").as_deref(), Ok("s😀"));
    // Other texts are compared byte by byte.
    let ids = ["a", "A", " a", "a ", "\u{e1}", "a\u{301}", "\u{feff}a", "a\u{200b}", "\u{fffd}"];
    let keys: std::collections::BTreeSet<_> =
        ids.iter().map(|id| key(format!(r#"{{"id":"{id}"}}"#), "/id").unwrap()).collect();
    assert_eq!(keys.len(), ids.len());
}

#[test]
fn what_begins_as_a_document_and_is_none_gives_no_key_from_another_source() {
    let keys = extractor(&["json:/id", "message-id"]);
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    for payload in [
        b"\xef\xbb\xbf{\"id\":\"victim\"}".to_vec(),
        br#"{"id":"victim"} x"#.to_vec(),
        br#"{"id":"victim"}{"id":"r1"}"#.to_vec(),
        br#"{"id":"victim",}"#.to_vec(),
        b"{'id':'victim'}".to_vec(),
        b"{id:\"victim\"}".to_vec(),
        b"\x0c\x0b{\"id\":\"victim\"}".to_vec(),
        b"{\"id\":\"victim\",\"x\":\"\xff\"}".to_vec(),
        b"{\"id\":\"victim\",\"id\xff\":1}".to_vec(),
        b"{\"id\":\"victim\",\"x\":\"\t\"}".to_vec(),
        b"{\"id\":\"victim\",\"x\t\":1}".to_vec(),
        b"{\"id\":\"victim\",\"x\t\\n\":1}".to_vec(),
        b"{\"id\":\"victim\",\"x\\x69\":1}".to_vec(),
        b"{\"id\":\"victim\",\"x\":\"\\x69\"}".to_vec(),
        b"{\"id\":\"victim\",\"x\":NaN}".to_vec(),
        b"{\"id\":\"victim\",\"x\":01}".to_vec(),
        b"{\"id\":\"victim\"}\0".to_vec(),
        b"{\"id\":\"victim\"".to_vec(),
        utf16("{\"id\":\"victim\"}"),
        utf16("\u{feff}{\"id\":\"victim\"}"),
        br#"{"id":7.0}"#.to_vec(),
        br#"{"id":["victim"]}"#.to_vec(),
        br#"{"id":"victim","id":"r1"}"#.to_vec(),
        format!(r#"{{"id":"{}"}}"#, "x".repeat(super::MAX_KEY_BYTES + 1)).into_bytes(),
        format!(r#"{{"id":"{}"}}"#, "x".repeat(7 * super::MAX_KEY_BYTES)).into_bytes(),
    ] {
        let message = Message::builder(payload.clone()).message_id("m").build();
        let error = keys.key_of(&message).unwrap_err();
        assert!(error.is_unusable(), "{}: {error:?}", String::from_utf8_lossy(&payload));
        assert!(!error.to_string().contains("victim"), "{error}");
    }
    for payload in ["plain text", "", "\u{feff}text", "{\"id\":null}", "{\"x\":1}", "7"] {
        let message = Message::builder(payload).message_id("m").build();
        assert_eq!(keys.key_and_source(&message).map(|(_, source)| source), Ok(1), "{payload}");
    }
}

#[test]
fn a_list_of_both_spellings_takes_either() {
    let keys = extractor(&["json:/id", "json:/ID", "message-id"]);
    let source = |payload: &'static str| {
        keys.key_and_source(&Message::builder(payload).message_id("m").build()).map(|(_, source)| source)
    };
    assert_eq!(source(r#"{"id":1}"#), Ok(0));
    assert_eq!(source(r#"{"ID":1}"#), Ok(1));
    assert_eq!(source("{}"), Ok(2));
    assert!(source(r#"{"id":1,"ID":2}"#).is_err_and(|error| error.is_unusable()));
    assert!(source(r#"{"Id":1}"#).is_err_and(|error| error.is_unusable()));
}

#[test]
fn a_header_that_contradicts_itself_gives_no_key() {
    let keys = extractor(&["header:idempotency-key", "message-id"]);
    let source = |headers: &[(&'static str, &'static str)]| {
        let message = headers.iter().fold(Message::builder("x").message_id("m"), |message, (name, value)| {
            message.header(*name, *value)
        });
        keys.key_and_source(&message.build()).map(|(_, source)| source)
    };
    for other in ["idempotency-key", "Idempotency-Key", "IDEMPOTENCY_KEY", "idempotency.key"] {
        for pair in
            [[("idempotency-key", "r1"), (other, "victim")], [(other, "victim"), ("idempotency-key", "r1")]]
        {
            let error = source(&pair).unwrap_err();
            assert!(error.to_string().contains("header:idempotency-key is ambiguous"), "{error}");
        }
        assert_eq!(source(&[("idempotency-key", "r1"), (other, "r1")]), Ok(0), "{other}");
    }
    assert_eq!(
        source(&[("idempotency-key", "r1"), ("idempotency-keys", "x"), ("idempotencykey", "y")]),
        Ok(0)
    );
    assert_eq!(source(&[("Idempotency-Key", "r1")]), Ok(1));
    assert_eq!(source(&[("idempotency-key", ""), ("x", "y")]), Ok(1));
}

/// Golden vectors: a release that changes one forgets the keys that are stored.
#[test]
fn keys_of_plain_values_never_change() {
    let message = Message::builder(r#"{"id":42,"name":"a-1","yes":true,"big":12345678901234567890}"#)
        .header("h", "a-1")
        .message_id("a-1")
        .build();
    for (source, hex) in [
        ("json:/id", "3977be52e75748fe2b8b3e04053a89ee"),
        ("json:/name", "7515143e88e02d20a0262c7699514513"),
        ("json:/yes", "1f3aa60427bda782b023fe2cb970b3c0"),
        ("json:/big", "07fd245095dd235c0d2815df573e8d31"),
        ("header:h", "d5e9a94560644dbbeb9af2780765d33f"),
        ("message-id", "2646b04bd40834dd8983a6461886d1e5"),
        ("payload-hash", "f0296fa2ae26c15b8c051dddc8141d82"),
    ] {
        assert_eq!(extractor(&[source]).key_of(&message).unwrap().to_string(), hex, "{source}");
    }
}

#[test]
fn a_key_is_read_from_hexadecimal_digits_only() {
    let hex = "3977be52e75748fe2b8b3e04053a89ee";
    assert_eq!(super::Key::from_hex(hex).map(|key| key.to_string()).as_deref(), Some(hex));
    for text in [
        "3977be52e75748fe2b8b3e04053a89+e",
        "+977be52e75748fe2b8b3e04053a89ee",
        "39",
        hex.replace('e', "g").as_str(),
    ] {
        assert_eq!(super::Key::from_hex(text), None, "{text}");
    }
}

/// As keys: copies of messages that are stored would count as other messages.
#[test]
fn fingerprints_never_change() {
    for (text, hex) in [
        (r#"{"b":[1.0,"\u00e9\n",-12e-4],"a":{"y":null,"x":1200}}"#, "e5dc9372fd30771cb6eb8a809df10c54"),
        ("pay 7", "877a3c314e5e8d0cb1a5199b8d12801d"),
        (r#"{"id":1,"id":2}"#, "493616b4cc8d5d36ca8247c2c6126d82"),
    ] {
        assert_eq!(format!("{:?}", Fingerprint::of_json(text.as_bytes())), format!("Fingerprint({hex})"));
    }
    let selected = Fingerprinting::Pointers(vec!["/a".into(), "/c".into()]);
    let print = selected.of(br#"{"b":1,"a":{"y":1,"x":2.50}}"#).unwrap();
    assert_eq!(format!("{print:?}"), "Fingerprint(5881c4bee23cb13a390b6bba8480de53)");
}

/// A member as generated: the name and value as text, and what the strictest reading of the name is.
#[derive(Clone, Debug)]
struct Member {
    written: &'static str,
    name: &'static str,
    value: String,
}

fn member() -> impl Strategy<Value = Member> {
    let name = prop_oneof![
        Just((r#""id""#, "id")),
        Just((r#""\u0069d""#, "id")),
        Just((r#""ID""#, "ID")),
        Just((r#""iD""#, "iD")),
        Just((r#""id\u0000x""#, "id\0x")),
        Just((r#""x""#, "x")),
        Just((r#""idx""#, "idx")),
        Just((r#""""#, "")),
    ];
    let value = prop_oneof![
        "-?(0|[1-9][0-9]{0,20})",
        "-?[0-9](\\.[0-9]{1,3})?([eE][+-]?[0-9])?",
        "\"[a-c]{0,3}\"",
        Just(r#""\u0061""#.to_owned()),
        Just(r#""a\u0000""#.to_owned()),
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just("[1]".to_owned()),
        Just(r#"{"id":1}"#.to_owned()),
    ];
    (name, value).prop_map(|((written, name), value)| Member { written, name, value })
}

/// What readers of all kinds take for the member `id`.
fn readings(members: &[Member]) -> Vec<&str> {
    let same = |name: &str| name == "id";
    let any_case = |name: &str| name.eq_ignore_ascii_case("id");
    let c_string = |name: &str| name.split('\0').next() == Some("id");
    let rules: [&dyn Fn(&str) -> bool; 3] = [&same, &any_case, &c_string];
    let of_rule = |rule: &dyn Fn(&str) -> bool| {
        let mut all = members.iter().filter(|member| rule(member.name));
        let first = all.next();
        [first, all.next_back().or(first)]
    };
    rules.iter().flat_map(|rule| of_rule(*rule)).flatten().map(|member| member.value.as_str()).collect()
}

proptest! {
    #[test]
    fn a_key_is_of_the_value_that_all_readers_find(members in prop::collection::vec(member(), 0..5)) {
        let written: Vec<_> = members.iter().map(|member| format!("{}:{}", member.written, member.value)).collect();
        let payload = format!("{{{}}}", written.join(","));
        let readings = readings(&members);
        let Ok(key) = key(&payload, "/id") else {
            // Nothing that all read alike is refused.
            let clear = readings.len() == 6 && readings.iter().all(|value| *value == readings[0])
                && members.iter().filter(|member| member.value == readings[0]).count() == 1;
            let value: Value = readings.first().map_or(Value::Null, |value| serde_json::from_str(value).unwrap_or_default());
            let usable = value.as_str().is_some_and(|text| !text.is_empty() && !text.contains('\0'))
                || value.is_boolean() || readings.first().is_some_and(|value| is_plain_integer(value));
            prop_assert!(!(clear && usable), "{} is refused", payload);
            return Ok(());
        };
        prop_assert!(!readings.is_empty());
        for reading in readings {
            let value: Value = serde_json::from_str(reading).unwrap();
            match value {
                Value::String(text) => prop_assert_eq!(&key, &format!("s{text}"), "{}", payload),
                Value::Bool(is) => prop_assert_eq!(&key, &format!("b{is}"), "{}", payload),
                _ => prop_assert_eq!(&key, &format!("n{reading}"), "{}", payload),
            }
        }
    }

    #[test]
    fn whatever_has_a_key_is_valid_json_with_that_value(text in "[\\[\\]{}:, \"\\\\uide0019.E+-]{0,32}") {
        if let Ok(key) = key(&text, "/id") {
            let value: Value = serde_json::from_str(&text).unwrap();
            let found = &value["id"];
            let expected = found.as_str().map_or_else(|| format!("n{found}"), |text| format!("s{text}"));
            prop_assert_eq!(key, expected);
        }
    }
}
