//! The JSON Schema and the starter file agree with what parses.

use onceward_cli::config::{Config, Handler, STARTER, Source, Store, schema};

use crate::examples::{CONTRACT, base_with, combinations, no_env, parse};

/// The errors that the schema reports for a configuration.
fn complaints(source: &str) -> Vec<String> {
    let value: serde_json::Value = toml::from_str(source).expect("the source is TOML");
    let validator = jsonschema::validator_for(schema().as_value()).expect("the schema is a schema");
    validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn the_schema_accepts_what_parses_and_refuses_what_does_not() {
    assert_eq!(complaints(CONTRACT), [""; 0]);
    assert_eq!(complaints(STARTER), [""; 0]);
    for source in combinations() {
        assert_eq!(complaints(&source), [""; 0], "{source}");
    }
    for (from, to) in [
        ("from =", "form ="),
        ("[store.sqlite]", "[store.sqllite]"),
        ("'json:/id'", "'json:id'"),
        ("scope = 'billing'\n", ""),
        ("'billing'", "7"),
        ("[key]", "[store.memory]\n[key]"),
    ] {
        let source = base_with(from, to);
        assert!(Config::parse(&source, &no_env).is_err());
        assert_ne!(complaints(&source), [""; 0], "{source}");
    }
}

#[test]
fn every_key_of_the_schema_is_described() {
    fn undescribed(at: &str, schema: &serde_json::Value, found: &mut Vec<String>) {
        if let Some(fields) = schema["properties"].as_object() {
            for (name, field) in fields {
                if field.get("description").is_none() {
                    found.push(format!("{at}.{name}"));
                }
            }
        }
        if let Some(definitions) = schema["$defs"].as_object() {
            definitions.iter().for_each(|(name, definition)| undescribed(name, definition, found));
        }
    }
    let mut found = Vec::new();
    undescribed("", schema().as_value(), &mut found);
    assert_eq!(found, [""; 0]);
}

/// Uncomments one block of the starter: the lines after `# [header]`, without their comment sign.
fn commented_blocks() -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut open = false;
    for line in STARTER.lines() {
        let bare = line.strip_prefix("# ").unwrap_or_default();
        let starts_one = bare.starts_with('[') && line.starts_with("# [");
        if starts_one && !bare.contains(".properties]") && !bare.contains(".headers]") {
            blocks.push(String::new());
            open = true;
        }
        match blocks.last_mut() {
            Some(block) if open && line.starts_with("# ") => {
                block.push_str(bare);
                block.push('\n');
            }
            _ => open = false,
        }
    }
    blocks
}

#[test]
fn the_starter_parses_as_it_is_and_with_each_block_it_offers() {
    let env = |name: &str| name.chars().all(|c| c.is_ascii_uppercase() || c == '_').then(|| "x".to_owned());
    let config = parse(STARTER);
    assert_eq!(config.advice(), [], "the starter is good as it is");
    assert!(matches!(
        (&config.source, &config.store, &config.handler),
        (Source::File(_), Store::Sqlite(_), Handler::Http(_))
    ));

    let blocks = commented_blocks();
    let tables: Vec<_> = blocks.iter().filter_map(|block| block.lines().next()).collect();
    assert_eq!(tables.len(), 10, "{tables:?}");
    for block in &blocks {
        let table = block.trim_start_matches('[').split(['.', ']']).next().unwrap();
        let mut source = String::new();
        let mut skipping = false;
        for line in STARTER.lines().filter(|line| !line.starts_with('#')) {
            if line.starts_with('[') {
                skipping = line.starts_with(&format!("[{table}"));
            }
            if !skipping {
                source.push_str(line);
                source.push('\n');
            }
        }
        let source = source + block;
        if let Err(error) = Config::parse(&source, &env) {
            panic!("{error}\n{source}");
        }
    }
}
