//! Checks that an option's two documentations, in the table and in the library's configuration struct, state the values that its
//! code has: [`assert_documented`].

use schemars::{JsonSchema, SchemaGenerator};

/// An option that a table and a configuration struct have both, with phrases that its documentation contains.
#[derive(Debug)]
pub struct SharedOption {
    /// Its name in the table.
    pub option: &'static str,
    /// Its name in the struct.
    pub field: &'static str,
    /// A phrase in both documentations, made of the range's constant: `from 1s to 12h`.
    pub range: Option<String>,
    /// The default: the reference shows it from the table's code, and the struct's documentation has `default 30s`.
    pub default: Option<String>,
}

/// Compares the documentation of `options` in the table `T`, and in the source text of the configuration struct, with their values.
///
/// # Panics
/// A phrase is missing, or a field.
pub fn assert_documented<T: JsonSchema>(config_source: &str, options: &[SharedOption]) {
    let schema = SchemaGenerator::default().into_root_schema_for::<T>();
    let schema = schema.as_value();
    for SharedOption { option, field, range, default } in options {
        let table = schema["properties"][option]["description"].as_str().unwrap_or_default();
        let library = doc_of_field(config_source, field);
        if let Some(range) = range {
            let in_table = table.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
            let (library, range) = (library.to_lowercase(), range.to_lowercase());
            assert!(in_table.contains(&range), "the table's {option} does not say \"{range}\": {in_table}");
            assert!(library.contains(&range), "the struct's {field} does not say \"{range}\": {library}");
        }
        if let Some(default) = default {
            let phrase = format!("default {default}");
            assert!(library.contains(&phrase), "the struct's {field} does not say \"{phrase}\": {library}");
        }
    }
}

/// The doc comment above `pub NAME:`, on one line.
fn doc_of_field(source: &str, name: &str) -> String {
    let field = format!("pub {name}:");
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let at =
        lines.iter().position(|line| line.starts_with(&field)).unwrap_or_else(|| panic!("no field {name}"));
    let doc = lines[..at].iter().rev().map_while(|line| line.strip_prefix("///"));
    let mut doc: Vec<_> = doc.map(str::trim).collect();
    doc.reverse();
    doc.join(" ")
}

#[cfg(test)]
#[allow(unreachable_pub, reason = "the macro declares public types")]
mod tests {
    use super::*;
    use crate::value::HumanDuration;

    crate::table! {
        /// A table.
        Table {
            /// Waits, from 1s
            /// to 5s.
            pub wait: HumanDuration,
        }
    }

    const STRUCT: &str =
        "struct Config {\n    /// The wait, from 1s to\n    /// 5s; default 2s.\n    pub wait: Duration,\n}";

    fn assert_wait(range: &str, default: &str) {
        let (range, default) = (Some(range.to_owned()), Some(default.to_owned()));
        assert_documented::<Table>(STRUCT, &[SharedOption { option: "wait", field: "wait", range, default }]);
    }

    #[test]
    fn what_both_say_is_accepted() {
        assert_wait("from 1s to 5s", "2s");
    }

    #[test]
    #[should_panic(expected = "the table's wait does not say")]
    fn another_range_is_found() {
        assert_wait("from 1s to 6s", "2s");
    }

    #[test]
    #[should_panic(expected = "the struct's wait does not say \"default 3s\"")]
    fn another_default_is_found() {
        assert_wait("from 1s to 5s", "3s");
    }
}
