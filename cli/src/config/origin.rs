//! The line of each key in its file, for findings that arise after parsing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::fault::{PathStep, ReadFault, What};
use super::remark::Remark;

/// The texts that were changed, as they are written, by the path of their key.
pub(super) type Written = BTreeMap<String, String>;

/// The file's name and the line of every key in it. Of the values it holds those with variables in them, as written.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Origin {
    file: Option<PathBuf>,
    lines: BTreeMap<String, usize>,
    written: Written,
}

/// Printed as the file's name only: the lines would drown what matters.
impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Origin {
    pub(super) fn of(
        file: Option<&Path>,
        table: &DeTable<'_>,
        lines: &LineIndex<'_>,
        written: Written,
    ) -> Self {
        let mut origin = Self { file: file.map(Path::to_owned), lines: BTreeMap::new(), written };
        origin.note_table("", table, lines);
        origin
    }

    fn note_table(&mut self, path: &str, table: &DeTable<'_>, lines: &LineIndex<'_>) {
        for (key, value) in table {
            let path = join(path, &PathStep::Key(key.get_ref().to_string()));
            self.lines.insert(path.clone(), lines.at(key.span().start));
            self.note_value(&path, value.get_ref(), lines);
        }
    }

    fn note_value(&mut self, path: &str, value: &DeValue<'_>, lines: &LineIndex<'_>) {
        match value {
            DeValue::Table(table) => self.note_table(path, table, lines),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = join(path, &PathStep::Index(index));
                    self.lines.insert(path.clone(), lines.at(item.span().start));
                    self.note_value(&path, item.get_ref(), lines);
                }
            }
            _ => {}
        }
    }

    /// The file's name, as the caller gave it.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// True where the key is written in the file, rather than left to its default.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.lines.contains_key(key)
    }

    /// The text at the key as it is written, if there are variables in it.
    pub(super) fn with_variables(&self, key: &str) -> Option<&str> {
        self.written.get(key).map(String::as_str)
    }

    /// All texts with variables in them, as they are written.
    pub(super) fn with_any_variables(&self) -> impl Iterator<Item = &str> {
        self.written.values().map(String::as_str)
    }

    /// Every key that is written, with its line.
    pub(super) fn written(&self) -> impl Iterator<Item = (&str, usize)> {
        self.lines.iter().map(|(key, line)| (key.as_str(), *line))
    }

    /// The key's line, or that of the nearest table around it that is written, or the first.
    pub(super) fn line(&self, key: &str) -> usize {
        let mut path = key;
        loop {
            if let Some(line) = self.lines.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return 1,
            }
        }
    }

    pub(super) fn remark(&self, key: &str, problem: impl Into<String>, fix: impl Into<String>) -> Remark {
        let remark = Remark::new(problem, fix).key(key).line(self.line(key));
        match &self.file {
            Some(file) => remark.file(file),
            None => remark,
        }
    }

    /// Places a fault by its path and position.
    pub(super) fn place(&self, fault: &ReadFault, lines: &LineIndex<'_>) -> Remark {
        let mut path = fault.path.iter().rev().fold(String::new(), |path, step| join(&path, step));
        if let What::Missing(name) = fault.what {
            path = join(&path, &PathStep::Key(name.to_owned()));
        }
        let (problem, fix) = fault.what.sentence();
        let remark = self.remark(&path, problem, fix);
        match &fault.span {
            Some(span) if !matches!(fault.what, What::Missing(_)) => remark.line(lines.at(span.start)),
            _ => remark,
        }
    }
}

/// One step further: `store.ttl`, `key.from[1]`, `properties."odd key"`.
pub(super) fn join(path: &str, step: &PathStep) -> String {
    let mut path = path.to_owned();
    // Writing to a `String` cannot fail.
    let _ = match step {
        PathStep::Index(index) => write!(path, "[{index}]"),
        PathStep::Key(key) => {
            if !path.is_empty() {
                path.push('.');
            }
            let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            if bare { write!(path, "{key}") } else { write!(path, "{key:?}") }
        }
    };
    path
}

/// Turns positions in a text into line numbers.
pub(super) struct LineIndex<'a>(&'a str);

impl<'a> LineIndex<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self(text)
    }

    /// The line, counted from 1, that holds the byte at `position`.
    pub(super) fn at(&self, position: usize) -> usize {
        self.0.bytes().take(position).filter(|byte| *byte == b'\n').count() + 1
    }

    pub(super) fn text(&self, span: Range<usize>) -> &'a str {
        self.0.get(span).unwrap_or_default()
    }
}
