//! The committed list of known violations: how many of each check are accepted for each subject.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::Violation;

const HEADING: &str = "# Known violations: check, subject, count. The list only shrinks; see main.rs.\n";

/// Accepted counts by check and subject.
#[derive(Debug, Default)]
pub(crate) struct Exceptions(BTreeMap<(String, String), usize>);

impl Exceptions {
    /// The list that accepts exactly these.
    pub(crate) fn of(violations: &[Violation]) -> Self {
        let mut counts = BTreeMap::new();
        for violation in violations {
            *counts.entry((violation.check.to_owned(), violation.subject.clone())).or_default() += 1;
        }
        Self(counts)
    }

    /// Reads the list. A line that is not an entry panics.
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entries = lines.map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [check, subject, count] => {
                ((check.to_owned(), subject.to_owned()), count.parse().expect("a count"))
            }
            _ => panic!("not an entry of the list of exceptions: {line}"),
        });
        Self(entries.collect())
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = HEADING.to_owned();
        for ((check, subject), count) in &self.0 {
            writeln!(text, "{check} {subject} {count}").expect("a string takes it");
        }
        text
    }

    /// The violations that are not accepted, and the entries that are larger than needed.
    pub(crate) fn compare(&self, violations: &[Violation]) -> Vec<String> {
        let found = Self::of(violations);
        let mut problems = Vec::new();
        for (place, count) in &found.0 {
            let accepted = self.0.get(place).copied().unwrap_or_default();
            if *count > accepted {
                let at = violations.iter().filter(|one| (one.check, &*one.subject) == (&*place.0, &*place.1));
                problems.extend(at.map(|one| format!("{}: {}: {}", one.check, one.subject, one.text)));
            }
        }
        for (place, accepted) in &self.0 {
            let count = found.0.get(place).copied().unwrap_or_default();
            if count < *accepted {
                let (check, subject) = place;
                problems.push(format!(
                    "{check}: {subject}: {accepted} exceptions but {count} violations; shrink the list (TIDY_UPDATE=1)"
                ));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(file: &str) -> Violation {
        Violation::new("lengths", file, "401 lines")
    }

    #[test]
    fn a_new_violation_and_an_entry_without_one_are_problems() {
        let list = Exceptions::parse("# heading\nlengths a.rs 1\n");
        assert_eq!(list.compare(&[long("a.rs")]), Vec::<String>::new());
        assert_eq!(list.compare(&[long("a.rs"), long("b.rs")]), ["lengths: b.rs: 401 lines"]);
        assert_eq!(list.compare(&[long("a.rs"), long("a.rs")]).len(), 2);
        let unused = list.compare(&[]);
        assert!(unused.len() == 1 && unused[0].contains("1 exceptions but 0 violations"), "{unused:?}");
    }

    #[test]
    fn a_list_is_read_as_it_is_written() {
        let violations = [long("a.rs"), long("a.rs"), long("b.rs")];
        let text = Exceptions::of(&violations).to_text();
        assert!(text.ends_with("lengths a.rs 2\nlengths b.rs 1\n"), "{text}");
        assert_eq!(Exceptions::parse(&text).compare(&violations), Vec::<String>::new());
    }
}
