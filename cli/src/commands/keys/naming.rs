//! Turns what a person types into the keys it may be, and finds those that the store knows.

use onceward::store::KeyRecord;
use onceward::{Key, KeyExtractor, KeyText};

use super::Bench;
use crate::args::KeyArgs;
use crate::commands;
use crate::config::{KeyPart, KeySource};
use crate::exit::{Exit, Failure};
use crate::registry;

/// One key that a text may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) key: Key,
    /// Where its values stand in a message; none for a key named by its hash.
    pub(super) from: Option<String>,
}

/// A key that the store knows.
pub(super) struct Known {
    pub(super) named: Named,
    pub(super) record: KeyRecord,
}

/// One value of a key, with its type if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Untyped(String),
    Text(String),
    Literal(String),
}

impl Value {
    /// A JSON text, number or boolean.
    pub(super) fn of_json(value: &serde_json::value::RawValue) -> Option<Self> {
        let text = value.get();
        match text.as_bytes().first() {
            Some(b'"') => serde_json::from_str(text).ok().map(Self::Text),
            Some(b'-' | b'0'..=b'9' | b't' | b'f') => Some(Self::Literal(text.to_owned())),
            _ => None,
        }
    }

    pub(super) fn as_key_text(&self) -> KeyText<'_> {
        match self {
            Self::Untyped(text) => KeyText::Untyped(text),
            Self::Text(text) => KeyText::Text(text),
            Self::Literal(text) => KeyText::Literal(text),
        }
    }
}

fn usage(sentence: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, sentence)
}

/// The key of a hash.
pub(super) fn of_hash(hash: &str, option: &str) -> Result<Key, Failure> {
    Key::from_hex(hash).ok_or_else(|| {
        usage(format!("{option}: is no key's hash; give 32 hexadecimal digits, as `keys list` does"))
    })
}

/// The source that `from` names, or the configuration's first.
pub(super) fn source(bench: &Bench<'_>, from: &[KeyPart]) -> Vec<KeyPart> {
    match (from, bench.config.key.from.first()) {
        ([], Some(first)) => first.parts().to_vec(),
        (from, _) => from.to_vec(),
    }
}

/// What finds keys by one source.
pub(super) fn extractor(bench: &Bench<'_>, parts: &[KeyPart]) -> KeyExtractor {
    KeyExtractor::new(&bench.scope, vec![registry::key_source(parts)])
}

/// How a source is written.
pub(super) fn written(parts: &[KeyPart]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
}

/// Every key that the arguments may mean, the likeliest first.
pub(super) fn candidates(bench: &Bench<'_>, args: &KeyArgs) -> Result<Vec<Named>, Failure> {
    if let Some(hash) = &args.hash {
        return Ok(vec![Named { key: of_hash(hash, "--hash")?, from: None }]);
    }
    let values = values(args)?;
    let given = [args.from.clone()];
    let configured: Vec<Vec<KeyPart>> =
        bench.config.key.from.iter().map(KeySource::parts).map(<[KeyPart]>::to_vec).collect();
    let sources = if args.from.is_empty() { &configured[..] } else { &given[..] };
    let fitting = || sources.iter().filter(|parts| parts.len() == values.len());
    if fitting().next().is_none() {
        let wanted: Vec<_> = sources.iter().map(|parts| written(parts)).collect();
        return Err(usage(format!(
            "a key has as many values as its source has parts, and {} were given; give those of {}",
            values.len(),
            wanted.join(", or those of ")
        )));
    }
    let texts: Vec<_> = values.iter().map(Value::as_key_text).collect();
    let mut candidates: Vec<Named> = Vec::new();
    let mut refused = None;
    for parts in fitting() {
        match extractor(bench, parts).keys_from_text(0, &texts) {
            Ok(keys) => {
                let from = Some(written(parts));
                candidates.extend(keys.into_iter().map(|key| Named { key, from: from.clone() }));
            }
            Err(error) => refused = Some(usage(format!("{}: {error}", written(parts)))),
        }
    }
    match refused {
        Some(refused) if candidates.is_empty() => Err(refused),
        _ => Ok(candidates),
    }
}

fn values(args: &KeyArgs) -> Result<Vec<Value>, Failure> {
    let typed = |text: &String| {
        let value = serde_json::from_str(text).ok().and_then(Value::of_json);
        value.ok_or_else(|| {
            usage("--typed: a value is no JSON text, number or boolean; put a text in quotes, as '\"42\"'")
        })
    };
    let untyped = |text: &String| Ok(Value::Untyped(text.clone()));
    args.values.iter().map(|text| if args.typed { typed(text) } else { untyped(text) }).collect()
}

/// Those of `candidates` that the store knows.
pub(super) async fn known(bench: &Bench<'_>, candidates: &[Named]) -> Result<Vec<Known>, Failure> {
    let mut known = Vec::new();
    for named in candidates {
        let record = bench.store.store.inspect(&bench.scope, &named.key).await;
        if let Some(record) = record.map_err(|error| commands::failure(&error))? {
            known.push(Known { named: named.clone(), record });
        }
    }
    Ok(known)
}
