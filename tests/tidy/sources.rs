//! The files of the workspace, and their parsed Rust source.

use std::fs;
use std::path::Path;

/// Folders that hold nothing that is written by hand.
const SKIPPED: [&str; 3] = ["target", "corpus", "artifacts"];

/// A Rust source file.
pub(crate) struct Source {
    /// Relative to the workspace, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
}

impl Source {
    /// Panics if it is not Rust.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self { path: path.to_owned(), text: text.to_owned(), syntax }
    }

    /// True for tests, benchmarks and examples: their types are private to one program.
    pub(crate) fn is_test(&self) -> bool {
        let mut folders = self.path.split('/');
        let file = folders.next_back();
        file == Some("tests.rs")
            || folders.any(|name| ["tests", "benches", "examples", "fuzz"].contains(&name))
    }
}

/// All files below `root`, sorted, relative to it. Hidden folders and build output are left out.
pub(crate) fn list(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(root.join(&folder)).expect("a folder of the workspace");
        for entry in entries.map(|entry| entry.expect("an entry of a folder")) {
            let name = entry.file_name().into_string().expect("a UTF-8 name");
            if name.starts_with('.') || SKIPPED.contains(&&*name) {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            match entry.file_type().expect("a file type").is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    files
}

/// The Rust files among `files`.
pub(crate) fn read(root: &Path, files: &[String]) -> Vec<Source> {
    let rust = files.iter().filter(|path| path.ends_with(".rs"));
    rust.map(|path| Source::new(path, &fs::read_to_string(root.join(path)).expect("a source file"))).collect()
}

/// True for an item that only tests are built with, or the public test support.
pub(crate) fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let condition = list.tokens.to_string();
        let words = condition.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        words.into_iter().any(|word| word == "test" || word == "testing")
    })
}
