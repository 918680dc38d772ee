//! Checks that no two types of the workspace have the same name.

use std::collections::BTreeMap;

use proc_macro2::Ident;
use syn::visit::{self, Visit};
use syn::{Item, ItemEnum, ItemStruct, ItemTrait, ItemUnion};

use crate::Violation;
use crate::sources::{Source, is_for_tests};

/// One violation for each definition after the first, counted for the name.
pub(crate) fn check(sources: &[Source]) -> Vec<Violation> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let mut types = Types::default();
        types.visit_file(&source.syntax);
        for name in types.0 {
            let place = format!("{}:{}", source.path, name.span().start().line);
            places.entry(name.to_string()).or_default().push(place);
        }
    }
    let mut violations = Vec::new();
    for (name, places) in &places {
        let first = &places[0];
        let others = places.iter().skip(1);
        violations.extend(
            others.map(|place| Violation::new("types", name, format!("defined at {first} and at {place}"))),
        );
    }
    violations
}

#[derive(Default)]
struct Types(Vec<Ident>);

impl Visit<'_> for Types {
    fn visit_item(&mut self, item: &Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            Item::Union(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_struct(&mut self, item: &ItemStruct) {
        self.0.push(item.ident.clone());
    }

    fn visit_item_enum(&mut self, item: &ItemEnum) {
        self.0.push(item.ident.clone());
    }

    fn visit_item_trait(&mut self, item: &ItemTrait) {
        self.0.push(item.ident.clone());
        visit::visit_item_trait(self, item);
    }

    fn visit_item_union(&mut self, item: &ItemUnion) {
        self.0.push(item.ident.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_two_types_is_found_wherever_they_stand() {
        let sources = [
            Source::new("src/a.rs", "pub struct Held;\npub enum Only {}\n"),
            Source::new("cli/src/b.rs", "fn f() {\n    trait Held {}\n}\n"),
            Source::new("cli/src/c.rs", "#[cfg(test)]\nmod tests { struct Only; }\n"),
            Source::new("cli/tests/d.rs", "struct Only;\n"),
        ];
        let found = check(&sources);
        let wanted = Violation::new("types", "Held", "defined at src/a.rs:1 and at cli/src/b.rs:2");
        assert_eq!(found, [wanted]);
    }
}
