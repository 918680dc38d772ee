//! Counts what wrapping a loop changes in an example: [`assert_small_change`].

use std::collections::HashMap;

/// Lines that may be added, replaced or removed to wrap an existing loop.
const MOST: usize = 10;

/// Asserts that of the lines of an example's module `before` at most ten are added, replaced or removed in its module
/// `after`, uses included, indentation and empty lines not.
///
/// # Panics
/// If there are more, or none; if one of the modules is missing or too short to be a loop.
pub fn assert_small_change(example: &str) {
    let (before, after) = (lines_of(example, "before"), lines_of(example, "after"));
    assert!(before.len() > 15 && after.len() > 15, "the modules are not what they were");
    let changed = changed(&before, &after);
    assert!((1..=MOST).contains(&changed), "{changed} lines changed");
}

fn lines_of<'a>(example: &'a str, module: &str) -> Vec<&'a str> {
    let Some(start) = example.find(&format!("pub mod {module} {{")) else { panic!("no module {module}") };
    let lines = example[start..].lines().skip(1).take_while(|line| *line != "}");
    lines.map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// The fewest changes for the rest of both, by their lengths and the lines removed and added so far at this place.
type Seen = HashMap<(usize, usize, usize, usize), usize>;

/// For each place where they differ, the larger number of removed and added lines; returns the smallest possible sum.
fn changed(before: &[&str], after: &[&str]) -> usize {
    fn walk(before: &[&str], after: &[&str], gone: usize, came: usize, seen: &mut Seen) -> usize {
        if before.is_empty() && after.is_empty() {
            return gone.max(came);
        }
        let key = (before.len(), after.len(), gone, came);
        if let Some(known) = seen.get(&key) {
            return *known;
        }
        let mut best = usize::MAX;
        if let ([first, rest @ ..], [same, others @ ..]) = (before, after)
            && first == same
        {
            best = gone.max(came) + walk(rest, others, 0, 0, seen);
        }
        if let [_, rest @ ..] = before {
            best = best.min(walk(rest, after, gone + 1, came, seen));
        }
        if let [_, rest @ ..] = after {
            best = best.min(walk(before, rest, gone, came + 1, seen));
        }
        seen.insert(key, best);
        best
    }
    walk(before, after, 0, 0, &mut Seen::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_as_a_reader_would() {
        assert_eq!(changed(&["a", "b", "c"], &["a", "x", "y", "c", "d"]), 3);
        assert_eq!(changed(&["a", "b", "c"], &["c"]), 2);
        assert_eq!(changed(&["a"], &["a"]), 0);
    }
}
