//! Checks that the root of the crate `onceward` exports the names of `root_exports.txt`: what a program with a pipeline names.
//!
//! A name that only adapters need belongs in `onceward::adapter`. The list grows by hand, so that a review sees it.

use std::collections::BTreeSet;

use syn::{Item, Visibility};

use crate::Violation;
use crate::paths::imports;
use crate::sources::Source;

const ROOT: &str = "src/lib.rs";

/// The committed names, one a line.
pub(crate) fn listed() -> BTreeSet<String> {
    parse(include_str!("root_exports.txt"))
}

fn parse(text: &str) -> BTreeSet<String> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

pub(crate) fn check(sources: &[Source], listed: &BTreeSet<String>) -> Vec<Violation> {
    let Some(root) = sources.iter().find(|source| source.path == ROOT) else { return Vec::new() };
    let exported = exported(&root.syntax);
    let new = exported.difference(listed).map(|name| {
        (name, "is exported by the root and not in root_exports.txt; export it from `adapter` or `store`, or list it")
    });
    let gone = listed.difference(&exported).map(|name| {
        (name, "is in root_exports.txt and not exported by the root; remove the line, and write a changelog entry")
    });
    new.chain(gone).map(|(name, text)| Violation::new("root_exports", name, text)).collect()
}

fn exported(root: &syn::File) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for item in &root.items {
        match item {
            Item::Use(item) if is_public(&item.vis) => {
                names.extend(
                    imports(item).into_iter().map(|import| import.name.unwrap_or_else(|| "*".to_owned())),
                );
            }
            Item::Mod(item) if is_public(&item.vis) => {
                names.insert(item.ident.to_string());
            }
            Item::Const(item) if is_public(&item.vis) => {
                names.insert(item.ident.to_string());
            }
            _ => {}
        }
    }
    names
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_export_and_a_listed_name_without_one_are_found() {
        let listed = parse("# comment\nKey\nScope\nstore\n");
        let root = |text| [Source::new(ROOT, text)];
        let kept = "pub mod store;\nmod key;\npub use key::{Key, Scope};\npub(crate) use key::Hidden;\n";
        assert_eq!(check(&root(kept), &listed), []);
        let found = check(&root("pub mod store;\npub use key::{Key, Tag};\npub use key::*;\n"), &listed);
        let subjects: Vec<_> = found.iter().map(|one| &*one.subject).collect();
        assert_eq!(subjects, ["*", "Tag", "Scope"]);
    }
}
