//! Checks that each file begins with a heading that says what the module is or does.

use syn::{Expr, Lit, Meta};

use crate::Violation;
use crate::sources::Source;

/// A heading that begins so is a riddle: it names a question instead of the thing.
const QUESTIONS: [&str; 8] = ["What", "How", "Who", "Where", "When", "Why", "Which", "Whether"];

pub(crate) fn check(sources: &[Source]) -> Vec<Violation> {
    let problem = |source: &Source| match heading(&source.syntax) {
        None => Some("it has no heading (//!)".to_owned()),
        Some(heading) => {
            let first = heading.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default();
            QUESTIONS.contains(&first).then(|| format!("its heading begins with {first}: {heading}"))
        }
    };
    let violations =
        sources.iter().filter_map(|source| Some(Violation::new("headings", &*source.path, problem(source)?)));
    violations.collect()
}

/// The first line of the module's documentation.
fn heading(file: &syn::File) -> Option<String> {
    file.attrs.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(doc) if doc.path.is_ident("doc") => match &doc.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) if !text.value().trim().is_empty() => Some(text.value().trim().to_owned()),
                _ => None,
            },
            // `include_str!`: a whole document.
            _ => Some("An included document".to_owned()),
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_heading_and_a_riddle_are_found() {
        let sources = [
            Source::new("good.rs", "//! Runs scripts.\n//! What follows is free.\nfn f() {}"),
            Source::new("included.rs", "#![doc = include_str!(\"../README.md\")]\n"),
            Source::new("missing.rs", "/// Not a heading.\nfn f() {}"),
            Source::new("riddle.rs", "//! What is to come again.\n"),
        ];
        let found = check(&sources);
        let subjects: Vec<_> = found.iter().map(|violation| &*violation.subject).collect();
        assert_eq!(subjects, ["missing.rs", "riddle.rs"]);
        assert!(found[1].text.contains("begins with What"), "{found:?}");
    }
}
