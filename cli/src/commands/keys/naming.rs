//! Resolves values from the command line to possible keys, and finds those that the store knows.

use onceward::store::KeyRecord;
use onceward::{Key, KeyExtractor, KeyText};

use super::context::KeysContext;
use crate::args::KeyArgs;
use crate::commands::failure;
use crate::config::{self, KeyPart, KeySource};
use crate::exit::{Exit, Failure};

/// A key that the values may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) key: Key,
    /// The place of its values in a message; `None` for a key given by its hash.
    pub(super) from: Option<String>,
}

/// A key that the store knows.
pub(super) struct Known {
    pub(super) named: Named,
    pub(super) record: KeyRecord,
}

/// A value of a key, with its type if known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Untyped(String),
    Text(String),
    Literal(String),
}

impl Value {
    /// A JSON string, number or boolean; `None` for anything else.
    pub(super) fn from_json(value: &serde_json::value::RawValue) -> Option<Self> {
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

/// Parses the hash of a key.
pub(super) fn key_of_hash(hash: &str, option: &str) -> Result<Key, Failure> {
    Key::from_hex(hash).ok_or_else(|| {
        usage(format!("{option}: not the hash of a key; give 32 hexadecimal digits, as shown by `keys list`"))
    })
}

/// The source in `from`, or else the first one of the configuration.
pub(super) fn source(context: &KeysContext<'_>, from: &[KeyPart]) -> Vec<KeyPart> {
    match (from, context.config.key.from.first()) {
        ([], Some(first)) => first.parts().to_vec(),
        (from, _) => from.to_vec(),
    }
}

/// Extracts keys from one source.
pub(super) fn extractor(context: &KeysContext<'_>, parts: &[KeyPart]) -> KeyExtractor {
    KeyExtractor::new(&context.scope, vec![config::key_source(parts)])
}

/// The text of a source.
pub(super) fn source_text(parts: &[KeyPart]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
}

/// All keys that the arguments may mean, the most likely first.
pub(super) fn candidates(context: &KeysContext<'_>, args: &KeyArgs) -> Result<Vec<Named>, Failure> {
    if let Some(hash) = &args.hash {
        return Ok(vec![Named { key: key_of_hash(hash, "--hash")?, from: None }]);
    }
    let values = values(args)?;
    let given = [args.from.clone()];
    let configured: Vec<Vec<KeyPart>> =
        context.config.key.from.iter().map(KeySource::parts).map(<[KeyPart]>::to_vec).collect();
    let sources = if args.from.is_empty() { &configured[..] } else { &given[..] };
    let fitting = || sources.iter().filter(|parts| parts.len() == values.len());
    if fitting().next().is_none() {
        let wanted: Vec<_> = sources.iter().map(|parts| source_text(parts)).collect();
        return Err(usage(format!(
            "a key has as many values as its source has parts, and {} were given; give the values of {}",
            values.len(),
            wanted.join(", or of ")
        )));
    }
    let texts: Vec<_> = values.iter().map(Value::as_key_text).collect();
    let mut candidates: Vec<Named> = Vec::new();
    let mut refused = None;
    for parts in fitting() {
        match extractor(context, parts).keys_from_text(0, &texts) {
            Ok(keys) => {
                let from = Some(source_text(parts));
                candidates.extend(keys.into_iter().map(|key| Named { key, from: from.clone() }));
            }
            Err(error) => refused = Some(usage(format!("{}: {error}", source_text(parts)))),
        }
    }
    match refused {
        Some(refused) if candidates.is_empty() => Err(refused),
        _ => Ok(candidates),
    }
}

fn values(args: &KeyArgs) -> Result<Vec<Value>, Failure> {
    let typed = |text: &String| {
        let value = serde_json::from_str(text).ok().and_then(Value::from_json);
        value.ok_or_else(|| {
            usage("--typed: a value is not a JSON string, number or boolean; put a string in quotes, as '\"42\"'")
        })
    };
    let untyped = |text: &String| Ok(Value::Untyped(text.clone()));
    args.values.iter().map(|text| if args.typed { typed(text) } else { untyped(text) }).collect()
}

/// Those of `candidates` that the store knows.
pub(super) async fn known(context: &KeysContext<'_>, candidates: &[Named]) -> Result<Vec<Known>, Failure> {
    let mut known = Vec::new();
    for named in candidates {
        let record = context.store.store.inspect(&context.scope, &named.key).await;
        if let Some(record) = record.map_err(|error| failure::failure(&error))? {
            known.push(Known { named: named.clone(), record });
        }
    }
    Ok(known)
}
