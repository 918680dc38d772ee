//! Checks comments and strings for phrases that `words.txt` bans.

use crate::Violation;
use crate::comments::{Passage, comments, strings};
use crate::sources::Source;

/// A phrase, and what to write in its place.
pub(crate) struct Banned {
    phrase: String,
    better: String,
}

/// The list in `words.txt`: one `phrase: better words` a line.
pub(crate) fn banned() -> Vec<Banned> {
    parse(include_str!("words.txt"))
}

fn parse(text: &str) -> Vec<Banned> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entries = lines.map(|line| {
        let (phrase, better) = line.split_once(": ").unwrap_or_else(|| panic!("no `phrase: better`: {line}"));
        Banned { phrase: phrase.to_lowercase(), better: better.to_owned() }
    });
    entries.collect()
}

/// Comments everywhere; strings outside tests, since tests quote foreign text.
pub(crate) fn check(sources: &[Source], banned: &[Banned]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        let mut passages = comments(&source.text);
        if !source.is_test() {
            passages.extend(strings(&source.text));
        }
        for passage in passages {
            let found = banned.iter().filter(|banned| contains(&passage, &banned.phrase));
            violations.extend(found.map(|banned| {
                let (phrase, better, line) = (&banned.phrase, &banned.better, passage.line);
                Violation::new("words", &*source.path, format!("line {line}: \"{phrase}\"; better: {better}"))
            }));
        }
    }
    violations
}

/// True if the phrase stands there as whole words, in any letter case.
fn contains(passage: &Passage, phrase: &str) -> bool {
    let text = passage.text.to_lowercase();
    text.match_indices(phrase).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + phrase.len()..].chars().next();
        let is_outside = |letter: Option<char>| letter.is_none_or(|one| !one.is_alphanumeric() && one != '_');
        is_outside(before) && is_outside(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_banned_phrase_is_found_in_comments_and_strings_as_whole_words() {
        let banned = parse("# comment\n\nunless told: by default\nmend: repair\n");
        let source = Source::new(
            "src/a.rs",
            "//! Runs, unless\n//! told otherwise.\n/// Recommended.\nfn f() { g(\"mend it\") }\n",
        );
        let found: Vec<_> = check(&[source], &banned).into_iter().map(|one| one.text).collect();
        assert_eq!(
            found,
            ["line 1: \"unless told\"; better: by default", "line 4: \"mend\"; better: repair"]
        );
    }

    #[test]
    fn strings_of_tests_are_free_and_their_comments_are_not() {
        let banned = parse("mend: repair\n");
        let text = "// mend\nfn f() { g(\"mend\") }\n";
        assert_eq!(check(&[Source::new("adapters/a/tests/a.rs", text)], &banned).len(), 1);
    }

    #[test]
    fn each_banned_phrase_has_a_better_one() {
        assert!(super::banned().iter().all(|banned| !banned.better.trim().is_empty()));
    }
}
