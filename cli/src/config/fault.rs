//! Faults found while a value is read. They are worded here, because serde's own messages quote the value.

use std::fmt;
use std::ops::Range;

use serde::de;

use crate::plugins::REGISTERED;

/// The number of known names that an error lists; further ones are only counted.
const MAX_NAMES: usize = 12;

/// Something wrong at a place: `path` from the innermost step outwards, `span` in bytes of the file.
#[derive(Debug)]
pub(super) struct ReadFault {
    pub(super) what: What,
    pub(super) path: Vec<PathStep>,
    pub(super) span: Option<Range<usize>>,
}

/// One step from a table or array to what it holds.
#[derive(Debug)]
pub(super) enum PathStep {
    Key(String),
    Index(usize),
}

/// The problem. No variant has room for the value found.
#[derive(Debug)]
pub(super) enum What {
    /// A table holds a name that it does not know; the name is the last step of the path.
    UnknownField { nearest: Vec<&'static str>, known: &'static [&'static str] },
    /// A text, or the one table to choose, is not among the known ones.
    UnknownChoice { nearest: Vec<&'static str>, known: &'static [&'static str] },
    /// A required key is absent from the table at the path.
    Missing(&'static str),
    /// A table that must name exactly one of `known` names these.
    NotOne { found: Vec<&'static str>, known: &'static [&'static str] },
    /// Another type or range was expected.
    Expected(String),
    /// A sentence of our own, `problem; fix`.
    Custom(String),
}

impl ReadFault {
    pub(super) fn new(what: What) -> Self {
        Self { what, path: Vec::new(), span: None }
    }

    /// The innermost place wins, so that a table does not claim the fault of its field.
    pub(super) fn at(mut self, span: Range<usize>) -> Self {
        self.span.get_or_insert(span);
        self
    }

    pub(super) fn within(mut self, step: PathStep) -> Self {
        self.path.push(step);
        self
    }

    /// A name that is not among those known, with the nearest of them.
    pub(super) fn unknown_choice(found: &str, known: &'static [&'static str]) -> Self {
        Self::new(What::UnknownChoice { nearest: nearest(found, known), known })
    }
}

/// The known names most like `found`, best first, at most two; none when all are far.
fn nearest(found: &str, known: &'static [&'static str]) -> Vec<&'static str> {
    let found = found.to_lowercase().replace('_', "-");
    let mut near: Vec<_> = known
        .iter()
        .map(|name| (strsim::jaro_winkler(&found, &name.replace('_', "-")), *name))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .collect();
    near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    near.into_iter().take(2).map(|(_, name)| name).collect()
}

impl What {
    /// The sentence's two halves: what is wrong, and what to do.
    pub(super) fn sentence(&self) -> (String, String) {
        match self {
            Self::UnknownField { nearest, known } => ("is not a known name".into(), choose(nearest, known)),
            Self::UnknownChoice { nearest, known } => {
                ("is not one of the known values".into(), choose(nearest, known))
            }
            Self::Missing(name) => ("is missing".into(), how_to_add(name)),
            Self::NotOne { found, known } if found.is_empty() => {
                ("names none of its kinds".into(), format!("write exactly one of {}", list(known)))
            }
            Self::NotOne { found, .. } => {
                (format!("names {}", found.join(" and ")), "keep exactly one of them".into())
            }
            Self::Expected(expected) => ("has another type or range".into(), format!("write {expected}")),
            Self::Custom(sentence) => match sentence.split_once("; ") {
                Some((problem, fix)) => (problem.into(), fix.into()),
                None => (sentence.clone(), "correct it".into()),
            },
        }
    }
}

fn choose(nearest: &[&str], known: &[&str]) -> String {
    match nearest {
        [] if known.is_empty() => "remove it, nothing is known here".into(),
        [] => format!("write one of {}", list(known)),
        near => format!("did you mean {}?", near.join(" or ")),
    }
}

fn list(names: &[&str]) -> String {
    match names.len().checked_sub(MAX_NAMES) {
        Some(more @ 1..) => format!("{} and {more} more", names[..MAX_NAMES].join(", ")),
        _ => names.join(", "),
    }
}

fn how_to_add(name: &str) -> String {
    match name {
        "scope" => r#"add `scope = "…"`, the name of the consumer whose keys these are"#.into(),
        "source" | "store" => format!("add {}", tables_of(name)),
        "handler" => {
            "add [handler.http], [handler.exec], [handler.worker], [handler.sql], [handler.publish.…] or [handler.stdout]"
                .into()
        }
        other => format!("add `{other} = …`"),
    }
}

/// The tables of adapters under `parent`, for a sentence: "[store.one], [store.two] or [store.three]".
fn tables_of(parent: &str) -> String {
    let adapters = REGISTERED.iter().flat_map(|adapter| adapter.tables());
    let within = adapters.filter(|table| table.table.split('.').next() == Some(parent));
    let mut tables: Vec<_> = within.map(|table| format!("[{}]", table.table)).collect();
    match (tables.pop(), tables.is_empty()) {
        (Some(last), false) => format!("{} or {last}", tables.join(", ")),
        (last, _) => last.unwrap_or_default(),
    }
}

/// serde's words for a type, in the words of the file.
fn in_words(expected: &str) -> String {
    match expected {
        "a string" | "a borrowed string" | "a character" | "path string" => "text in quotes".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "an array, such as [\"…\"]".into(),
        "a map" => "a table".into(),
        "u16" => format!("a whole number from 0 to {}", u16::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" | "usize" => "a whole number, not negative".into(),
        other if other.starts_with("struct ") || other.starts_with("enum ") || other == "newtype variant" => {
            "a table".into()
        }
        other => other.into(),
    }
}

impl fmt::Display for ReadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (problem, fix) = self.what.sentence();
        write!(f, "{problem}; {fix}")
    }
}

impl std::error::Error for ReadFault {}

impl de::Error for ReadFault {
    fn custom<T: fmt::Display>(sentence: T) -> Self {
        Self::new(What::Custom(sentence.to_string()))
    }

    fn invalid_type(_found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(What::Expected(in_words(&expected.to_string())))
    }

    fn invalid_value(_found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(What::Expected(in_words(&expected.to_string())))
    }

    fn invalid_length(_found: usize, expected: &dyn de::Expected) -> Self {
        Self::new(What::Expected(in_words(&expected.to_string())))
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::unknown_choice(found, known)
    }

    fn unknown_field(found: &str, known: &'static [&'static str]) -> Self {
        Self::new(What::UnknownField { nearest: nearest(found, known), known })
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(What::Missing(name))
    }
}
