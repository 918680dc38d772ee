//! Checks the length of files and functions.

use proc_macro2::Ident;
use syn::visit::{self, Visit};
use syn::{Block, ImplItemFn, ItemFn, TraitItemFn};

use crate::Violation;
use crate::sources::Source;

const FILE_LIMIT: usize = 400;
/// Lines between the braces.
const FUNCTION_LIMIT: usize = 70;

pub(crate) fn check(sources: &[Source]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        let lines = source.text.lines().count();
        if lines > FILE_LIMIT {
            violations.push(Violation::new("lengths", &*source.path, format!("it has {lines} lines")));
        }
        let mut functions = Functions::default();
        functions.visit_file(&source.syntax);
        violations.extend(functions.0.into_iter().map(|(name, lines)| {
            Violation::new("lengths", &*source.path, format!("function {name} has {lines} lines"))
        }));
    }
    violations
}

/// Those that are too long.
#[derive(Default)]
struct Functions(Vec<(String, usize)>);

impl Functions {
    fn measure(&mut self, name: &Ident, block: &Block) {
        let (open, close) = (block.brace_token.span.open(), block.brace_token.span.close());
        let lines = (close.start().line - open.start().line).saturating_sub(1);
        if lines > FUNCTION_LIMIT {
            self.0.push((name.to_string(), lines));
        }
    }
}

impl Visit<'_> for Functions {
    fn visit_item_fn(&mut self, item: &ItemFn) {
        self.measure(&item.sig.ident, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &ImplItemFn) {
        self.measure(&item.sig.ident, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &TraitItemFn) {
        if let Some(block) = &item.default {
            self.measure(&item.sig.ident, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        check(&[Source::new("a.rs", text)]).into_iter().map(|violation| violation.text).collect()
    }

    #[test]
    fn a_file_of_more_than_400_lines_is_found() {
        assert_eq!(found(&"//\n".repeat(400)), Vec::<String>::new());
        assert_eq!(found(&"//\n".repeat(401)), ["it has 401 lines"]);
    }

    #[test]
    fn a_function_of_more_than_70_lines_is_found_wherever_it_stands() {
        let function = |lines| format!("fn long() {{\n{}}}\n", "call();\n".repeat(lines));
        assert_eq!(found(&function(70)), Vec::<String>::new());
        assert_eq!(found(&function(71)), ["function long has 71 lines"]);
        for place in ["impl A", "trait B", "mod c", "fn d()"] {
            let text = format!("{place} {{ {} }}", function(71));
            assert!(found(&text).contains(&"function long has 71 lines".to_owned()), "{place}");
        }
    }
}
