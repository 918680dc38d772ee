//! The history of keys, from the audit trail: [`KeyHistory`].

use onceward::{Error, ErrorKind, Key};
use serde_json::Value;

use super::context::KeysContext;
use crate::commands::audit::{KeyChange, LetterRecord};
use crate::commands::failure::sentence;
use crate::handlers::text::printable;

/// Entries of one call to the store.
const PAGE: u32 = 1_000;
/// The most calls: the trail has no index of keys.
const PAGES: usize = 100;
/// The most bytes of an entry that are printed.
const TEXT_LIMIT: usize = 1_024;

/// The entries about some keys, the oldest first.
pub(super) struct KeyHistory {
    entries: Vec<Value>,
    /// There may be older entries, which were not searched.
    pub(super) is_cut: bool,
    /// Why it cannot be read, if the store refuses it: a worker needs no right to read the audit trail.
    pub(super) denied: Option<String>,
}

impl KeyHistory {
    /// Searches the newest entries of the scope; a store without an audit trail has none.
    ///
    /// # Errors
    /// The store cannot answer. That it refuses to is no error.
    pub(super) async fn read(context: &KeysContext<'_>, keys: &[Key]) -> Result<Self, Error> {
        let none = |denied| Self { entries: Vec::new(), is_cut: false, denied };
        let Some(audit) = &context.store.audit else { return Ok(none(None)) };
        let keys: Vec<_> = keys.iter().map(Key::to_string).collect();
        let (mut entries, mut before, mut is_cut) = (Vec::new(), None, true);
        for _ in 0..PAGES {
            let page = match audit.read(&context.scope, before, PAGE).await {
                Err(error) if error.kind() == ErrorKind::Denied => return Ok(none(Some(sentence(&error)))),
                page => page?,
            };
            entries.extend(page.iter().filter_map(|record| {
                let mut entry: Value = serde_json::from_str(&record.text).ok()?;
                let key = entry.get("key")?.as_str()?;
                if !keys.iter().any(|wanted| wanted == key) {
                    return None;
                }
                entry["number"] = record.number.into();
                Some(entry)
            }));
            before = page.last().map(|record| record.number);
            if page.len() < PAGE as usize {
                is_cut = false;
                break;
            }
        }
        entries.reverse();
        Ok(Self { entries, is_cut, denied: None })
    }

    /// The entries about `key`.
    pub(super) fn of(&self, key: &Key) -> impl Iterator<Item = &Value> {
        let key = key.to_string();
        self.entries.iter().filter(move |entry| entry["key"] == key)
    }
}

/// An entry in one line; one of another version is shown as it is.
pub(super) fn words(entry: &Value) -> String {
    let words = match serde_json::from_value::<KeyChange>(entry.clone()) {
        Ok(change) => change.words(),
        Err(_) => match serde_json::from_value::<LetterRecord>(entry.clone()) {
            Ok(letter) => letter.words(),
            Err(_) => entry.to_string(),
        },
    };
    printable(words.as_bytes(), TEXT_LIMIT)
}
