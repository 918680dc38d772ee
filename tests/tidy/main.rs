//! Checks of the source code itself: import cycles, headings, words, type names, lengths and the layout of the adapters.
//!
//! | check | fails on |
//! |---|---|
//! | `cycles` | a file of a crate that imports, over any number of steps, from a file that imports from it |
//! | `headings` | a file without a `//!` heading, or with one that begins with a question word |
//! | `words` | a phrase of `words.txt` in a comment, a log line or an error |
//! | `types` | a struct, enum or trait whose name another one has, outside tests |
//! | `lengths` | a file of more than 400 lines, a function of more than 70 |
//! | `layout` | an adapter without a file that the others of its role have; `name.rs` beside `name/`; a file of the program, but its registration, that names an adapter |
//! | `root_exports` | a name that the root of `onceward` exports and `root_exports.txt` does not list, or the reverse |
//! | `fuzz_imports` | an import of a fuzz target that nothing defines: the targets are built on demand only |
//!
//! Known violations are counted in `exceptions.txt`, by check and subject. The count must be exact: a new violation fails, and
//! so does an entry that is larger than needed, so that the list can only shrink. `TIDY_UPDATE=1 cargo test -p onceward-tidy`
//! writes the list again.

mod comments;
mod cycles;
mod exceptions;
mod fuzz_imports;
mod headings;
mod layout;
mod lengths;
mod modules;
mod paths;
mod root_exports;
mod sources;
mod types;
mod words;

use std::path::Path;

use exceptions::Exceptions;
use sources::Source;

/// One place where a rule is broken.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Violation {
    check: &'static str,
    /// A file or a name: what an exception is counted for.
    subject: String,
    text: String,
}

impl Violation {
    fn new(check: &'static str, subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { check, subject: subject.into(), text: text.into() }
    }
}

fn violations(sources: &[Source], files: &[String]) -> Vec<Violation> {
    let mut violations = cycles::check(sources);
    violations.extend(headings::check(sources));
    violations.extend(words::check(sources, &words::banned()));
    violations.extend(types::check(sources));
    violations.extend(lengths::check(sources));
    violations.extend(layout::check(files));
    violations.extend(layout::named_adapters(files, sources));
    violations.extend(root_exports::check(sources, &root_exports::listed()));
    violations.extend(fuzz_imports::check(sources));
    violations.sort();
    violations
}

#[test]
fn the_source_code_keeps_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = sources::list(&root);
    let sources = sources::read(&root, &files);
    assert!(sources.len() > 500, "only {} source files were found", sources.len());
    let violations = violations(&sources, &files);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("exceptions.txt");
    if std::env::var_os("TIDY_UPDATE").is_some() {
        std::fs::write(&path, Exceptions::of(&violations).to_text()).expect("the list can be written");
    }
    let exceptions = std::fs::read_to_string(&path).expect("the list of exceptions");
    let problems = Exceptions::parse(&exceptions).compare(&violations);
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}
