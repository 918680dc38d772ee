//! Extracts the paths that a piece of Rust source names: those of `use` items, and those in the rest of the code.

use proc_macro2::{TokenStream, TokenTree};
use syn::{UseTree, Visibility};

/// A leaf of a `use` item.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    /// The name that it gives; `None` for a glob.
    pub(crate) name: Option<String>,
    /// True for a re-export, at any visibility.
    pub(crate) is_reexport: bool,
}

/// The leaves of a `use` item.
pub(crate) fn imports(item: &syn::ItemUse) -> Vec<Import> {
    let mut leaves = Vec::new();
    let is_reexport = !matches!(item.vis, Visibility::Inherited);
    if item.leading_colon.is_none() {
        collect(&item.tree, &mut Vec::new(), is_reexport, &mut leaves);
    }
    leaves
}

fn collect(tree: &UseTree, path: &mut Vec<String>, is_reexport: bool, leaves: &mut Vec<Import>) {
    let mut leaf = |last: Option<String>, name: Option<String>| {
        // `a::{self}` is `a`.
        let last = last.filter(|last| last != "self" || path.is_empty());
        let whole: Vec<_> = path.iter().cloned().chain(last).collect();
        let name = name.map(|name| if name == "self" { path.last().cloned().unwrap_or(name) } else { name });
        leaves.push(Import { path: whole, name, is_reexport });
    };
    match tree {
        UseTree::Path(step) => {
            path.push(step.ident.to_string());
            collect(&step.tree, path, is_reexport, leaves);
            path.pop();
        }
        UseTree::Name(end) => leaf(Some(end.ident.to_string()), Some(end.ident.to_string())),
        UseTree::Rename(end) => leaf(Some(end.ident.to_string()), Some(end.rename.to_string())),
        UseTree::Glob(_) => leaf(None, None),
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| collect(tree, path, is_reexport, leaves));
        }
    }
}

/// All paths in code, macros included: `a::b`, and each single name.
pub(crate) fn in_code(tokens: TokenStream) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    walk(tokens, &mut paths);
    paths
}

fn walk(tokens: TokenStream, paths: &mut Vec<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    // Colons since the last name; a name after a dot is a field or a method.
    let (mut colons, mut after_dot) = (0, false);
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                if colons != 2 {
                    finish(&mut path, paths);
                }
                if !after_dot {
                    path.push(ident.to_string());
                }
                (colons, after_dot) = (0, false);
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => (colons, after_dot) = (colons + 1, false),
            other => {
                finish(&mut path, paths);
                colons = 0;
                after_dot = matches!(&other, TokenTree::Punct(punct) if punct.as_char() == '.');
                if let TokenTree::Group(group) = other {
                    walk(group.stream(), paths);
                }
            }
        }
    }
    finish(&mut path, paths);
}

fn finish(path: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    if !path.is_empty() {
        paths.push(std::mem::take(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leaf_of_a_use_item_is_found() {
        let item = syn::parse_str("pub(crate) use super::{a::{self, B as C}, d::*, E};").expect("an item");
        let found: Vec<_> =
            imports(&item).into_iter().map(|leaf| (leaf.path.join("::"), leaf.name)).collect();
        let wanted = [
            ("super::a", Some("a")),
            ("super::a::B", Some("C")),
            ("super::d", None),
            ("super::E", Some("E")),
        ];
        assert_eq!(found, wanted.map(|(path, name)| (path.to_owned(), name.map(str::to_owned))));
        assert!(imports(&item).iter().all(|leaf| leaf.is_reexport));
    }

    #[test]
    fn paths_in_code_and_in_macros_are_found() {
        let code = "fn f(a: crate::a::B) -> Vec<C> { self.d.e(); vec![super::g::h(&i::J { k: L })] }";
        let found = in_code(code.parse().expect("tokens"));
        let found: Vec<_> = found.into_iter().map(|path| path.join("::")).collect();
        for path in ["crate::a::B", "C", "super::g::h", "i::J", "L"] {
            assert!(found.contains(&path.to_owned()), "{path}: {found:?}");
        }
        assert!(!found.contains(&"e".to_owned()), "{found:?}");
    }
}
