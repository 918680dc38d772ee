//! Parses TOML, and words its syntax errors without the text that is wrong.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeTable;

use super::origin::{LineIndex, Origin};
use super::remark::Remark;

/// Parses the text, keeping the position of every key and value.
pub(super) fn parse<'a>(source: &'a str, lines: &LineIndex<'_>) -> Result<Spanned<DeTable<'a>>, Remark> {
    DeTable::parse(source).map_err(|error| {
        // The crate's messages are fixed sentences; its `Display` would add the source line, which may hold a password.
        let (problem, _) = error.message().split_once(", expected").unwrap_or((error.message(), ""));
        let span = error.span().unwrap_or_default();
        let remark = Remark::new(format!("invalid TOML, {problem}"), fix(problem)).line(lines.at(span.start));
        match key_at(source, span, lines) {
            Some(key) => remark.key(key),
            None => remark,
        }
    })
}

fn fix(problem: &str) -> &'static str {
    match problem {
        "duplicate key" => "keep one of the two",
        _ if problem.contains("quote") => "put text between double quotes",
        _ if problem.contains("comma") => "separate the elements by single commas",
        _ if problem.contains("missing value") => "write a value after `=`",
        _ if problem.contains("unclosed") => "close the bracket or quote that is open there",
        _ => "correct the line: names are bare, text is in double quotes, one `name = value` a line",
    }
}

/// The key that is wrong, as far as the text can be read: the longest on the line, or, for one written twice, its
/// first. Only names that a configuration knows, since in a text that is no TOML anything may look like a key.
fn key_at(source: &str, span: Range<usize>, lines: &LineIndex<'_>) -> Option<String> {
    let (table, _) = DeTable::parse_recoverable(source);
    let origin = Origin::of(None, table.get_ref(), lines, Default::default());
    let line = lines.at(span.start);
    let is_known = {
        let known = known_names();
        move |path: &&str| path.split('.').all(|name| known.contains(name))
    };
    let on_line = origin.written().filter(|(_, at)| *at == line).map(|(path, _)| path);
    if let Some(path) = on_line.filter(&is_known).max_by_key(|path| path.len()) {
        return Some(path.to_owned());
    }
    let name = lines.text(span);
    let before = origin.written().filter(|(path, at)| *at < line && path.rsplit('.').next() == Some(name));
    before.max_by_key(|(_, at)| *at).map(|(path, _)| path).filter(is_known).map(str::to_owned)
}

/// Every name that a configuration may hold, anywhere in it.
fn known_names() -> BTreeSet<String> {
    fn gather(schema: &serde_json::Value, names: &mut BTreeSet<String>) {
        match schema {
            serde_json::Value::Object(object) => {
                for (name, part) in object {
                    if let ("properties", serde_json::Value::Object(fields)) = (name.as_str(), part) {
                        names.extend(fields.keys().cloned());
                    }
                    gather(part, names);
                }
            }
            serde_json::Value::Array(parts) => parts.iter().for_each(|part| gather(part, names)),
            _ => {}
        }
    }
    let mut names = BTreeSet::new();
    gather(super::schema().as_value(), &mut names);
    names
}
