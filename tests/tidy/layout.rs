//! Checks that adapters of one role have the same files, that a module with submodules is a folder with `mod.rs`, and that the
//! program names adapters in its registration only.

use std::collections::{BTreeMap, BTreeSet};

use crate::Violation;
use crate::sources::Source;

/// A role, the module that shows that a crate has it, and the modules that each crate of the role has.
const ROLES: [(&str, &str, &[&str]); 2] = [
    (
        "broker",
        "consumer",
        &["acker", "config", "consumer", "error", "inspect", "message", "plugin", "publisher"],
    ),
    ("store", "store", &["check", "checkpoint", "config", "error", "plugin", "store"]),
];

/// Crates beside the adapters of a role: runners on the source of another adapter.
const RUNNERS: [&str; 1] = ["kafka-transactions"];

/// The one file of the program that names adapters.
const REGISTRATION: &str = "cli/src/plugins.rs";

pub(crate) fn check(files: &[String]) -> Vec<Violation> {
    let mut violations = adapters(files);
    violations.extend(self_named(files));
    violations
}

/// Adapters that a file of the program names, tests within it included.
pub(crate) fn named_adapters(files: &[String], sources: &[Source]) -> Vec<Violation> {
    let adapters =
        files.iter().filter_map(|file| file.strip_prefix("adapters/")?.split_once('/')).map(|(name, _)| name);
    // A file is also a word of the program.
    let adapters: BTreeSet<&str> = adapters.filter(|name| *name != "file").collect();
    let program =
        sources.iter().filter(|source| source.path.starts_with("cli/src/") && source.path != REGISTRATION);
    let named = program.flat_map(|source| {
        let text = source.text.to_lowercase();
        let named = adapters.iter().filter(move |name| text.contains(**name));
        named.map(|name| {
            Violation::new(
                "layout",
                &*source.path,
                format!("names the adapter {name}; only {REGISTRATION} may"),
            )
        })
    });
    named.collect()
}

fn adapters(files: &[String]) -> Vec<Violation> {
    let mut crates: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in files {
        if let Some((name, path)) = file.strip_prefix("adapters/").and_then(|path| path.split_once('/')) {
            crates.entry(name).or_default().insert(path);
        }
    }
    let mut violations = Vec::new();
    for (name, paths) in crates {
        let subject = format!("adapters/{name}");
        let has = |module: &str| {
            paths.contains(&*format!("src/{module}.rs")) || paths.contains(&*format!("src/{module}/mod.rs"))
        };
        if !paths.contains("README.md") {
            violations.push(Violation::new("layout", &subject, "README.md is missing"));
        }
        let roles: Vec<_> = ROLES.iter().filter(|(_, shows, _)| has(shows)).collect();
        if roles.is_empty() && !RUNNERS.contains(&name) {
            let text = "it is neither a broker (src/consumer.rs) nor a store (src/store.rs)";
            violations.push(Violation::new("layout", &subject, text));
        }
        for (role, _, modules) in roles {
            let missing = modules.iter().filter(|module| !has(module));
            violations.extend(missing.map(|module| {
                Violation::new("layout", &subject, format!("src/{module}.rs is missing; each {role} has it"))
            }));
        }
    }
    violations
}

/// `name.rs` beside `name/` with Rust in it.
fn self_named(files: &[String]) -> Vec<Violation> {
    let folders: BTreeSet<_> = files
        .iter()
        .filter(|file| file.ends_with(".rs"))
        .filter_map(|file| file.rsplit_once('/').map(|(folder, _)| folder))
        .collect();
    let beside = files.iter().filter(|file| {
        // A root of a crate has its modules beside it.
        file.strip_suffix(".rs").is_some_and(|stem| folders.contains(stem))
    });
    beside
        .map(|file| Violation::new("layout", file, "move it to mod.rs in the folder of the same name"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[&str]) -> Vec<(String, String)> {
        let files: Vec<_> = files.iter().map(|&file| file.to_owned()).collect();
        check(&files).into_iter().map(|violation| (violation.subject, violation.text)).collect()
    }

    #[test]
    fn an_adapter_without_a_file_of_its_role_is_found() {
        let store = ["check", "checkpoint", "config", "error", "plugin"];
        let mut files: Vec<_> = store.iter().map(|name| format!("adapters/new/src/{name}.rs")).collect();
        files.extend(["adapters/new/src/store/mod.rs".to_owned(), "adapters/new/README.md".to_owned()]);
        assert_eq!(check(&files), []);
        let removed = files.remove(0);
        assert_eq!(removed, "adapters/new/src/check.rs");
        let missing = check(&files);
        assert!(missing.len() == 1 && missing[0].text.contains("src/check.rs is missing"), "{missing:?}");
    }

    #[test]
    fn an_adapter_without_a_role_or_a_readme_is_found() {
        let found = found(&["adapters/odd/src/lib.rs"]);
        assert!(found.iter().any(|(_, text)| text.starts_with("README.md")), "{found:?}");
        assert!(found.iter().any(|(_, text)| text.starts_with("it is neither")), "{found:?}");
    }

    #[test]
    fn a_module_beside_its_folder_is_found() {
        let found =
            found(&["src/a.rs", "src/a/b.rs", "src/c/mod.rs", "src/c/d.rs", "docs/e.rs", "docs/e/f.md"]);
        assert_eq!(found.iter().map(|(subject, _)| &**subject).collect::<Vec<_>>(), ["src/a.rs"]);
    }

    #[test]
    fn an_adapter_that_the_program_names_is_found() {
        let files = ["adapters/new/src/lib.rs".to_owned(), "adapters/file/src/lib.rs".to_owned()];
        let text = "/// Reads a file.\nfn f() { open(\"source.New\") }\n";
        let sources = ["cli/src/a.rs", REGISTRATION, "cli/tests/b.rs"].map(|path| Source::new(path, text));
        let found = named_adapters(&files, &sources);
        assert_eq!(found.iter().map(|one| &*one.subject).collect::<Vec<_>>(), ["cli/src/a.rs"]);
    }
}
