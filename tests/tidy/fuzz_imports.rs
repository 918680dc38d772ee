//! Checks that what the fuzz targets import exists: they are built on demand only, in a workspace of their own.

use std::collections::BTreeSet;

use syn::Item;
use syn::visit::{self, Visit};

use crate::Violation;
use crate::paths::imports;
use crate::sources::Source;

const TARGETS: &str = "fuzz/targets/";

pub(crate) fn check(sources: &[Source]) -> Vec<Violation> {
    let (targets, others): (Vec<_>, Vec<_>) =
        sources.iter().partition(|source| source.path.starts_with(TARGETS));
    let mut defined = Defined::default();
    others.iter().for_each(|source| defined.visit_file(&source.syntax));
    let mut violations = Vec::new();
    for target in targets {
        let items = target.syntax.items.iter();
        let uses =
            items.filter_map(|item| if let Item::Use(item) = item { Some(imports(item)) } else { None });
        for path in uses.flatten().map(|import| import.path) {
            let is_ours = path.first().is_some_and(|krate| krate.starts_with("onceward"));
            if let Some(name) = path.last().filter(|name| is_ours && !defined.0.contains(*name)) {
                let text = format!("imports {name}, which nothing defines; rename it with its definition");
                violations.push(Violation::new("fuzz_imports", &target.path, text));
            }
        }
    }
    violations
}

/// The names of functions, types, modules and re-exports.
#[derive(Default)]
struct Defined(BTreeSet<String>);

impl Visit<'_> for Defined {
    fn visit_item(&mut self, item: &Item) {
        let name = match item {
            Item::Fn(item) => &item.sig.ident,
            Item::Struct(item) => &item.ident,
            Item::Enum(item) => &item.ident,
            Item::Trait(item) => &item.ident,
            Item::Mod(item) => &item.ident,
            Item::Use(item) => {
                let names = imports(item).into_iter().filter(|import| import.is_reexport);
                return self.0.extend(names.filter_map(|import| import.name));
            }
            _ => return visit::visit_item(self, item),
        };
        self.0.insert(name.to_string());
        visit::visit_item(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_without_a_definition_is_found() {
        let target = Source::new(
            "fuzz/targets/lines.rs",
            "use onceward_cli::lines::{Line, line}; use std::fmt::Debug;",
        );
        let library =
            |name: &str| Source::new("cli/src/lines.rs", &format!("pub struct {name}; pub fn line() {{}}"));
        let renamed = check(&[target, library("ProtocolLine")]);
        assert_eq!(renamed.len(), 1);
        assert!(renamed[0].text.contains("imports Line,"));
        let target = Source::new("fuzz/targets/lines.rs", "use onceward_cli::lines::{Line, line};");
        assert!(check(&[target, library("Line")]).is_empty());
    }
}
