//! `${NAME}` in string values is replaced from the environment, after parsing: what it holds stays a string.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::PathStep;
use super::origin::{LineIndex, Written, join};
use super::remark::Remark;

/// Looks a variable up. Only the program's edge reads the real environment; tests pass a map.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces every `${NAME}` in the table's string values, never in its keys. `$${` is replaced by `${`.
pub(super) fn substitute(
    table: &mut DeTable<'_>,
    env: Lookup<'_>,
    lines: &LineIndex<'_>,
) -> Result<Written, Remark> {
    let mut written = Written::new();
    substitute_table("", table, env, lines, &mut written)?;
    Ok(written)
}

fn substitute_table(
    path: &str,
    table: &mut DeTable<'_>,
    env: Lookup<'_>,
    lines: &LineIndex<'_>,
    written: &mut Written,
) -> Result<(), Remark> {
    for (key, value) in table.iter_mut() {
        substitute_value(&join(path, &PathStep::Key(key.get_ref().to_string())), value, env, lines, written)?;
    }
    Ok(())
}

fn substitute_value(
    path: &str,
    value: &mut Spanned<DeValue<'_>>,
    env: Lookup<'_>,
    lines: &LineIndex<'_>,
    written: &mut Written,
) -> Result<(), Remark> {
    let span = value.span();
    match value.get_mut() {
        DeValue::String(text) if text.contains("${") => {
            let replaced = expand(text, env).map_err(|failed| {
                let line = line_of(&failed, span, lines);
                let (problem, fix) = failed.sentence();
                Remark::new(problem, fix).key(path).line(line)
            })?;
            written.insert(path.to_owned(), std::mem::replace(text, replaced.into()).into_owned());
            Ok(())
        }
        DeValue::Array(items) => items.iter_mut().enumerate().try_for_each(|(index, item)| {
            substitute_value(&join(path, &PathStep::Index(index)), item, env, lines, written)
        }),
        DeValue::Table(table) => substitute_table(path, table, env, lines, written),
        _ => Ok(()),
    }
}

/// Within a text of several lines, the line of the variable itself.
fn line_of(failed: &Failed, value: Range<usize>, lines: &LineIndex<'_>) -> usize {
    let offset = match failed {
        Failed::Unset(name) => lines.text(value.clone()).find(&format!("${{{name}}}")),
        Failed::NotAName => None,
    };
    lines.at(value.start + offset.unwrap_or_default())
}

/// Why a text could not be expanded. The name is kept only once it is known to be a name.
#[derive(Debug, PartialEq)]
enum Failed {
    Unset(String),
    NotAName,
}

impl Failed {
    fn sentence(&self) -> (String, String) {
        match self {
            Self::Unset(name) => (
                format!("the environment variable {name} is not set"),
                format!("set it, or write $${{{name}}} for the text itself"),
            ),
            Self::NotAName => (
                "`${` is not followed by a variable's name and `}`".into(),
                "write ${NAME} with letters, digits and `_`, or `$${` for the text itself".into(),
            ),
        }
    }
}

fn expand(text: &str, env: Lookup<'_>) -> Result<String, Failed> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            expanded.push_str(&rest[..at]);
            expanded.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 2..];
        let (name, after) = after.split_once('}').ok_or(Failed::NotAName)?;
        let first_is_letter = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first_is_letter || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Failed::NotAName);
        }
        expanded.push_str(&env(name).ok_or_else(|| Failed::Unset(name.to_owned()))?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The names of the variables in a text.
pub(super) fn names(text: &str) -> Vec<String> {
    let found = RefCell::new(Vec::new());
    // A text that cannot be expanded was refused before.
    let _ = expand(text, &|name| {
        found.borrow_mut().push(name.to_owned());
        Some(String::new())
    });
    found.into_inner()
}

/// Writes a text so that reading it back gives the same: the opposite of substitution.
pub(super) fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "USER" => Some("ann".to_owned()),
            "NESTED" => Some("${USER}".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_once() {
        assert_eq!(expand("a-${USER}-${USER}", &env), Ok("a-ann-ann".to_owned()));
        assert_eq!(
            expand("${NESTED}", &env),
            Ok("${USER}".to_owned()),
            "what a variable holds is not expanded"
        );
    }

    #[test]
    fn the_names_in_a_text_are_found() {
        assert_eq!(names("a-${USER}-$${NO}-${B_2}"), ["USER", "B_2"]);
    }

    #[test]
    fn two_dollars_stand_for_one() {
        assert_eq!(expand("$${USER} costs $5, $$, {}", &env), Ok("${USER} costs $5, $$, {}".to_owned()));
    }

    #[test]
    fn an_unset_or_malformed_name_is_refused() {
        assert_eq!(expand("${UNSET}", &env), Err(Failed::Unset("UNSET".to_owned())));
        for text in ["${}", "${USER", "${1X}", "${a b}", "${hunter-2}"] {
            assert_eq!(expand(text, &env), Err(Failed::NotAName), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_reads_back(text in "[${}A-Z ]{0,24}") {
            prop_assert_eq!(expand(&escape(&text), &env), Ok(text));
        }
    }
}
