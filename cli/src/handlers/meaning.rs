//! Meanings of HTTP statuses and exit codes for a message: [`Statuses`], [`ExitCodes`].

use std::collections::BTreeMap;

pub use crate::config::Meaning;

/// The meanings of HTTP statuses that differ from the default.
///
/// ```
/// use onceward_cli::handlers::{Meaning, Statuses};
/// let statuses = Statuses::new([("5xx", Meaning::Unavailable), ("500", Meaning::Retry)]).unwrap();
/// assert_eq!(statuses.meaning(500), Some(Meaning::Retry));
/// assert_eq!(statuses.meaning(599), Some(Meaning::Unavailable));
/// assert_eq!(statuses.meaning(404), None);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Statuses {
    exact: BTreeMap<u16, Meaning>,
    /// By the first digit.
    classes: BTreeMap<u16, Meaning>,
}

impl Statuses {
    /// The meanings of statuses such as `503` and classes such as `5xx`. `None` if a name is neither.
    pub fn new<'a>(meanings: impl IntoIterator<Item = (&'a str, Meaning)>) -> Option<Self> {
        let mut statuses = Self::default();
        for (name, meaning) in meanings {
            match read(name)? {
                StatusName::Status(status) => statuses.exact.insert(status, meaning),
                StatusName::Class(class) => statuses.classes.insert(class, meaning),
            };
        }
        Some(statuses)
    }

    /// True if `name` is a status from 200 to 599, or a class of them.
    pub fn is_name(name: &str) -> bool {
        read(name).is_some()
    }

    /// The configured meaning of a status, or else of its class.
    pub fn meaning(&self, status: u16) -> Option<Meaning> {
        self.exact.get(&status).or_else(|| self.classes.get(&(status / 100))).copied()
    }
}

enum StatusName {
    Status(u16),
    Class(u16),
}

fn read(name: &str) -> Option<StatusName> {
    let &[first @ b'2'..=b'5', ..] = name.as_bytes() else { return None };
    match name.get(1..)? {
        "xx" | "XX" => Some(StatusName::Class(u16::from(first - b'0'))),
        rest if rest.len() == 2 && rest.bytes().all(|byte| byte.is_ascii_digit()) => {
            name.parse().ok().map(StatusName::Status)
        }
        _ => None,
    }
}

/// EX_DATAERR of sysexits.h: the input is invalid.
const EX_DATAERR: u8 = 65;

/// The meanings of exit codes; 0 always completes the message.
#[derive(Clone, Debug, Default)]
pub struct ExitCodes(BTreeMap<u8, Meaning>);

impl ExitCodes {
    /// The meanings that differ from the default.
    pub fn new(meanings: impl IntoIterator<Item = (u8, Meaning)>) -> Self {
        Self(meanings.into_iter().collect())
    }

    /// The meaning of `code`. By default 65 (EX_DATAERR) is permanent; 126 and 127, with which a shell reports that it
    /// cannot run or find a command, are unavailable; all others retry.
    pub fn meaning(&self, code: u8) -> Meaning {
        let default = match code {
            0 => return Meaning::Done,
            EX_DATAERR => Meaning::Permanent,
            126 | 127 => Meaning::Unavailable,
            _ => Meaning::Retry,
        };
        self.0.get(&code).copied().unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statuses_and_classes_are_names() {
        for name in ["200", "404", "599", "2xx", "5XX"] {
            assert!(Statuses::is_name(name), "{name}");
        }
        for name in
            ["", "5", "50", "5000", "600", "199", "1xx", "xx5", "5x", "5xx ", "+50", "5\u{fc}", "\u{fc}"]
        {
            assert!(!Statuses::is_name(name), "{name}");
        }
    }

    #[test]
    fn exit_codes_have_defaults_that_can_be_changed_and_zero_completes() {
        let codes = ExitCodes::new([(0, Meaning::Permanent), (65, Meaning::Retry), (3, Meaning::Done)]);
        let meanings = [0, 65, 3, 126, 127, 75, 1].map(|code| codes.meaning(code));
        use Meaning::{Done, Retry, Unavailable};
        assert_eq!(meanings, [Done, Retry, Done, Unavailable, Unavailable, Retry, Retry]);
    }
}
