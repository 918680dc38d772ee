//! The letters that a command is about: [`Filter`].

use std::time::{Duration, SystemTime};

use onceward::Key;

use super::letter::ReadLetter;
use crate::args::LetterFilter;
use crate::exit::{Exit, Failure};

/// The filter of a command; each condition that is given must hold.
#[derive(Debug)]
pub(super) struct Filter<'a> {
    args: &'a LetterFilter,
    key: Option<Key>,
    now: SystemTime,
}

impl<'a> Filter<'a> {
    pub(super) fn new(args: &'a LetterFilter) -> Result<Self, Failure> {
        let key = match &args.key {
            None => None,
            Some(hash) => Some(Key::from_hex(hash).ok_or_else(|| {
                let sentence =
                    "--key: not the hash of a key; give 32 hexadecimal digits, as shown by `dlq list`";
                Failure::new(Exit::Usage, sentence)
            })?),
        };
        Ok(Self { args, key, now: SystemTime::now() })
    }

    pub(super) fn now(&self) -> SystemTime {
        self.now
    }

    pub(super) fn limit(&self) -> usize {
        self.args.limit as usize
    }

    /// A letter without a time matches no condition on its age.
    pub(super) fn matches(&self, letter: &ReadLetter<'_>) -> bool {
        let args = self.args;
        let age = letter.age(self.now);
        let has_age = |holds: &dyn Fn(Duration) -> bool| age.is_some_and(holds);
        args.id.as_ref().is_none_or(|id| *id == letter.id())
            && args.reason.as_ref().is_none_or(|reason| reason == letter.reason.as_str())
            && args.older_than.is_none_or(|least| has_age(&|age| age >= least.get()))
            && args.newer_than.is_none_or(|most| has_age(&|age| age < most.get()))
            && self.key.is_none_or(|key| letter.key() == Some(key))
            && args.error.as_ref().is_none_or(|text| letter.error().is_some_and(|error| error.contains(text)))
            && args.message_id.as_ref().is_none_or(|id| letter.message_id().as_ref() == Some(id))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use onceward::{Message, Scope};

    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f";

    fn letter(headers: &[(&str, &str)]) -> Message {
        let base = [("onceward-scope", "a"), ("onceward-generation", "2"), ("onceward-reason", "permanent")];
        let all = base.iter().chain(headers);
        all.fold(Message::builder("x"), |message, (name, value)| {
            message.header(*name, value.as_bytes().to_vec())
        })
        .build()
    }

    fn none() -> LetterFilter {
        LetterFilter { limit: 10, ..LetterFilter::default() }
    }

    #[test]
    fn each_condition_selects_by_its_own_header() {
        let hour_ago = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(3_600);
        let hour_ago = hour_ago.as_millis().to_string();
        let message = letter(&[
            ("onceward-id", "k-2-p"),
            ("onceward-key", KEY),
            ("onceward-error", "no such customer"),
            ("onceward-message-id", "m-1"),
            ("onceward-last-at-ms", &hour_ago),
        ]);
        let scope = Scope::parse("a").unwrap();
        let letter = ReadLetter::of(&message, &scope).unwrap();
        assert_eq!(letter.generation, 2);
        let duration = |seconds| Some(Duration::from_secs(seconds).into());
        for (filter, expected) in [
            (none(), true),
            (LetterFilter { id: Some("k-2-p".into()), ..none() }, true),
            (LetterFilter { id: Some("k-2".into()), ..none() }, false),
            (LetterFilter { reason: Some("permanent".into()), ..none() }, true),
            (LetterFilter { reason: Some("mismatch".into()), ..none() }, false),
            (LetterFilter { older_than: duration(3_000), ..none() }, true),
            (LetterFilter { older_than: duration(4_000), ..none() }, false),
            (LetterFilter { newer_than: duration(4_000), ..none() }, true),
            (LetterFilter { newer_than: duration(3_000), ..none() }, false),
            (LetterFilter { key: Some(KEY.into()), ..none() }, true),
            (LetterFilter { key: Some(KEY.replace('f', "e")), ..none() }, false),
            (LetterFilter { error: Some("such".into()), ..none() }, true),
            (LetterFilter { error: Some("timeout".into()), ..none() }, false),
            (LetterFilter { message_id: Some("m-1".into()), ..none() }, true),
            (LetterFilter { message_id: Some("m".into()), ..none() }, false),
            (LetterFilter { error: Some("such".into()), reason: Some("mismatch".into()), ..none() }, false),
        ] {
            assert_eq!(Filter::new(&filter).unwrap().matches(&letter), expected, "{filter:?}");
        }
        assert!(Filter::new(&LetterFilter { key: Some("k".into()), ..none() }).is_err());
    }

    #[test]
    fn messages_of_others_are_no_letters() {
        assert!(ReadLetter::of(&letter(&[]), &Scope::parse("b").unwrap()).is_none());
        let foreign = Message::builder("x").header("onceward-scope", "a").build();
        assert!(ReadLetter::of(&foreign, &Scope::parse("a").unwrap()).is_none());
    }
}
