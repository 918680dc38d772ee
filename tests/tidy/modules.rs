//! The modules of a crate, and the file that defines what a path names.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::TokenStream;
use quote::ToTokens as _;
use syn::visit::{self, Visit};
use syn::{ImplItem, Item, ItemMod, ItemUse};

use crate::paths::{self, Import};
use crate::sources::{Source, is_for_tests};

/// How many re-exports a path may go through.
const DEPTH: usize = 16;

/// A module: a file, or a part of one.
struct Module {
    /// Index into [`Crate::files`].
    file: usize,
    parent: usize,
    children: BTreeMap<String, usize>,
    /// What it defines itself.
    items: BTreeSet<String>,
    imports: Vec<Import>,
    /// The code, apart from `use` items, submodules and tests.
    code: TokenStream,
}

/// The modules of a crate, without those for tests.
pub(crate) struct Crate {
    /// Paths of its source files.
    pub(crate) files: Vec<String>,
    modules: Vec<Module>,
}

#[derive(Clone, Copy)]
enum Target {
    Module(usize),
    /// Something that a module defines.
    Item(usize),
}

impl Crate {
    /// The crate with this root, such as `cli/src/lib.rs`.
    pub(crate) fn new(sources: &[Source], root: &Source) -> Self {
        let mut built = Self { files: vec![root.path.clone()], modules: Vec::new() };
        let folder = folder_of(&root.path).to_owned();
        built.add(sources, &root.syntax.items, 0, 0, &folder);
        built
    }

    /// Adds a module of `file`, whose submodules are in `folder`; answers its index.
    fn add(&mut self, sources: &[Source], items: &[Item], file: usize, parent: usize, folder: &str) -> usize {
        let index = self.modules.len();
        let mut module = Module {
            file,
            parent,
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            imports: Vec::new(),
            code: TokenStream::new(),
        };
        let mut inner = Vec::new();
        for item in items.iter().filter(|item| !is_for_tests(attributes(item))) {
            match item {
                Item::Mod(item) => inner.push(item),
                Item::Use(item) => module.imports.extend(paths::imports(item)),
                item => {
                    module.items.extend(name(item));
                    let mut nested = Nested::default();
                    nested.visit_item(item);
                    module.imports.extend(nested.0);
                    without_tests(item).to_tokens(&mut module.code);
                }
            }
        }
        self.modules.push(module);
        for item in inner {
            if let Some(child) = self.add_child(sources, item, index, folder) {
                self.modules[index].children.insert(item.ident.to_string(), child);
            }
        }
        index
    }

    fn add_child(
        &mut self,
        sources: &[Source],
        item: &ItemMod,
        parent: usize,
        folder: &str,
    ) -> Option<usize> {
        let name = item.ident.to_string();
        // Public test support imports what it likes.
        if name == "testing" {
            return None;
        }
        let inside = format!("{folder}/{name}");
        if let Some((_, items)) = &item.content {
            let file = self.modules[parent].file;
            return Some(self.add(sources, items, file, parent, &inside));
        }
        let candidates = [format!("{inside}.rs"), format!("{inside}/mod.rs")];
        let source = sources.iter().find(|source| candidates.contains(&source.path));
        let source = source.unwrap_or_else(|| panic!("none of {candidates:?} is there"));
        self.files.push(source.path.clone());
        let file = self.files.len() - 1;
        Some(self.add(sources, &source.syntax.items, file, parent, &inside))
    }

    /// The edges between files: (who imports, from where). A re-export does not count: what imports it depends on the file that
    /// defines it.
    pub(crate) fn edges(&self) -> BTreeSet<(usize, usize)> {
        let mut edges = BTreeSet::new();
        for (index, module) in self.modules.iter().enumerate() {
            let mut named: Vec<Vec<String>> = paths::in_code(module.code.clone());
            let imports = module.imports.iter().filter(|import| !import.is_reexport);
            named.extend(
                imports.clone().filter(|import| import.name.is_some()).map(|import| import.path.clone()),
            );
            let targets = named.iter().filter_map(|path| self.resolve(index, path, DEPTH));
            let files = targets.filter_map(|target| match target {
                Target::Item(module) => Some(self.modules[module].file),
                Target::Module(_) => None,
            });
            edges.extend(files.filter(|file| *file != module.file).map(|file| (module.file, file)));
        }
        edges
    }

    fn resolve(&self, from: usize, path: &[String], depth: usize) -> Option<Target> {
        let depth = depth.checked_sub(1)?;
        let (first, mut rest) = path.split_first()?;
        let mut target = match &**first {
            "crate" => Target::Module(0),
            "self" => Target::Module(from),
            "super" => Target::Module(self.modules[from].parent),
            name => self.look_up(from, name, depth)?,
        };
        while let (Target::Module(module), Some((name, after))) = (target, rest.split_first()) {
            target = match &**name {
                "super" => Target::Module(self.modules[module].parent),
                // A macro may define it.
                name => self.look_up(module, name, depth).unwrap_or(Target::Item(module)),
            };
            rest = after;
        }
        Some(target)
    }

    /// What a name means in a module.
    fn look_up(&self, module: usize, name: &str, depth: usize) -> Option<Target> {
        let here = &self.modules[module];
        if let Some(child) = here.children.get(name) {
            return Some(Target::Module(*child));
        }
        if here.items.contains(name) {
            return Some(Target::Item(module));
        }
        let by_name = here.imports.iter().filter(|import| import.name.as_deref() == Some(name));
        // `use tokio::task` beside a module of that name is about the crate.
        let own = by_name.filter(|import| import.path.first().is_some_and(|first| first != name));
        if let Some(target) = own.filter_map(|import| self.resolve(module, &import.path, depth)).next() {
            return Some(target);
        }
        let mut globs = here.imports.iter().filter(|import| import.name.is_none());
        globs.find_map(|glob| match self.resolve(module, &glob.path, depth)? {
            Target::Module(other) if other != module => self.look_up(other, name, depth.checked_sub(1)?),
            _ => None,
        })
    }
}

/// The folder of a file.
fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// `use` items within functions.
#[derive(Default)]
struct Nested(Vec<Import>);

impl Visit<'_> for Nested {
    fn visit_item_use(&mut self, item: &ItemUse) {
        self.0.extend(paths::imports(item));
        visit::visit_item_use(self, item);
    }
}

/// An `impl` block without its methods for tests.
fn without_tests(item: &Item) -> Item {
    let mut item = item.clone();
    if let Item::Impl(block) = &mut item {
        block.items.retain(|item| match item {
            ImplItem::Fn(function) => !is_for_tests(&function.attrs),
            _ => true,
        });
    }
    item
}

fn attributes(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}
