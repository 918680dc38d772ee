//! Configurations that people copy: they parse.

use std::fs;
use std::path::Path;

use onceward_cli::config::Config;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

#[test]
fn the_configuration_of_the_readme_parses() {
    let readme = read("README.md");
    let (_, block) = readme.split_once("```toml\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    Config::parse(block, &|_| None).unwrap_or_else(|error| panic!("{error}\n{block}"));
}

#[test]
fn the_configuration_for_kubernetes_parses() {
    let manifest = read("deploy/kubernetes.yaml");
    let (_, block) = manifest.split_once("onceward.toml: |\n").unwrap();
    let (block, _) = block.split_once("---\n").unwrap();
    let block: String =
        block.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    Config::parse(&block, &|_| None).unwrap_or_else(|error| panic!("{error}\n{block}"));
}
