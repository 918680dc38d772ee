//! Checks that no file of a crate imports, over any number of steps, from one that imports from it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::Violation;
use crate::modules::Crate;
use crate::sources::Source;

/// One violation for each file that is part of a cycle.
pub(crate) fn check(sources: &[Source]) -> Vec<Violation> {
    let is_root = |path: &str| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    let roots = sources.iter().filter(|source| is_root(&source.path) && !source.is_test());
    roots.flat_map(|root| of_crate(&Crate::new(sources, root))).collect()
}

fn of_crate(built: &Crate) -> Vec<Violation> {
    let mut next: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (from, to) in built.edges() {
        next.entry(from).or_default().insert(to);
    }
    let cycles = (0..built.files.len()).filter_map(|file| Some((file, shortest_cycle(&next, file)?)));
    let name = |file: &usize| short(&built.files[*file]);
    let violation = |(file, cycle): (usize, Vec<usize>)| {
        let steps: Vec<_> = cycle.iter().map(name).collect();
        Violation::new("cycles", &*built.files[file], format!("imports {}", steps.join(" → ")))
    };
    cycles.map(violation).collect()
}

/// The path within the crate.
fn short(path: &str) -> &str {
    path.split_once("src/").map_or(path, |(_, inside)| inside)
}

/// The shortest way from a file to itself.
fn shortest_cycle(next: &BTreeMap<usize, BTreeSet<usize>>, start: usize) -> Option<Vec<usize>> {
    let mut before: BTreeMap<usize, usize> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for to in next.get(&file).into_iter().flatten() {
            if before.contains_key(to) {
                continue;
            }
            before.insert(*to, file);
            if *to == start {
                return Some(back(&before, start));
            }
            queue.push_back(*to);
        }
    }
    None
}

fn back(before: &BTreeMap<usize, usize>, start: usize) -> Vec<usize> {
    let mut cycle = vec![start];
    let mut file = before[&start];
    while file != start {
        cycle.push(file);
        file = before[&file];
    }
    cycle.push(start);
    cycle.reverse();
    cycle
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let mut sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        sources.sort_by(|one, other| one.path.cmp(&other.path));
        check(&sources).into_iter().map(|violation| violation.text).collect()
    }

    #[test]
    fn a_cycle_over_three_files_is_found() {
        let found = found(&[
            ("a/src/lib.rs", "mod one;\nmod two;\nmod three;\nmod four;\n"),
            ("a/src/one.rs", "use crate::two::Two;\nfn f(two: Two) {}\n"),
            ("a/src/two.rs", "pub struct Two;\nfn f() { super::three::f() }\n"),
            ("a/src/three.rs", "fn f() { vec![crate::one::f()]; }\n"),
            ("a/src/four.rs", "use crate::one;\nfn f() { one::f() }\n"),
        ]);
        assert_eq!(
            found,
            [
                "imports one.rs → two.rs → three.rs → one.rs",
                "imports two.rs → three.rs → one.rs → two.rs",
                "imports three.rs → one.rs → two.rs → three.rs",
            ]
        );
    }

    #[test]
    fn what_a_parent_re_exports_is_of_the_file_that_defines_it() {
        let parent = "mod one;\nmod two;\npub use one::One;\npub(crate) use two::*;\n";
        let one = "use super::Two;\npub struct One(Two);\n";
        let mut files = [
            ("a/src/lib.rs", "mod part;\n"),
            ("a/src/part/mod.rs", parent),
            ("a/src/part/one.rs", one),
            ("a/src/part/two.rs", "pub struct Two;\n"),
        ];
        assert_eq!(found(&files), Vec::<String>::new());
        files[3].1 = "use super::One;\npub struct Two(Option<Box<One>>);\n";
        assert_eq!(found(&files).len(), 2);
        // The parent has a type of its own that both need.
        files[3].1 = "pub struct Two;\n";
        let parent = format!("{parent}pub struct Own(One);\n");
        files[1].1 = &parent;
        assert_eq!(found(&files), Vec::<String>::new());
        let one = format!("{one}fn f(own: super::Own) {{}}\n");
        files[2].1 = &one;
        assert_eq!(found(&files).len(), 2);
    }

    #[test]
    fn tests_and_test_support_may_import_in_a_circle() {
        let files = [
            ("a/src/lib.rs", "mod one;\nmod testing;\n"),
            ("a/src/one.rs", "pub struct One;\n#[cfg(test)]\nmod tests { use crate::testing::Double; }\n"),
            ("a/src/testing.rs", "use crate::one::One;\npub struct Double(One);\n"),
        ];
        assert_eq!(found(&files), Vec::<String>::new());
    }

    #[test]
    fn a_name_of_another_crate_is_not_taken_for_a_module() {
        let files = [
            ("a/src/lib.rs", "mod task;\nmod one;\n"),
            ("a/src/one.rs", "use tokio::task;\npub struct One;\nfn f() { task::spawn() }\n"),
            ("a/src/task.rs", "use crate::one::One;\nfn f(one: One) {}\n"),
        ];
        assert_eq!(found(&files), Vec::<String>::new());
    }
}
