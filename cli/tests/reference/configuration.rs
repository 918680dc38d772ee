//! `docs/reference/configuration.md`, from the schema that `onceward schema` prints.

use std::fmt::Write;

use serde_json::Value;

use super::{GENERATED, cell, compare};

/// The schema, with its definitions at hand.
struct Schema(Value);

impl Schema {
    /// The definition behind a `$ref`, or the schema itself.
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let name = schema["$ref"].as_str().and_then(|at| at.strip_prefix("#/$defs/"));
        name.map_or(schema, |name| &self.0["$defs"][name])
    }

    /// The schema of an optional value without its null.
    fn present<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let any = schema["anyOf"].as_array().into_iter().flatten();
        let mut present = any.filter(|one| one["type"] != "null");
        match (present.next(), present.next()) {
            (Some(one), None) => self.resolve(one),
            _ => self.resolve(schema),
        }
    }

    /// A type in words.
    fn name(&self, schema: &Value) -> String {
        let present = self.present(schema);
        if let Some(only) = present["const"].as_str() {
            return format!("`{only}`");
        }
        let names: Vec<_> = choices(present).iter().map(|(name, _)| format!("`{name}`")).collect();
        if !names.is_empty() {
            return names.join(", ");
        }
        if let Some(name) = reference(schema).filter(|name| matches!(*name, "Duration" | "Bytes" | "Secret"))
        {
            return match name {
                "Duration" => "duration",
                "Bytes" => "size",
                _ => "text, secret",
            }
            .to_owned();
        }
        let types = match &present["type"] {
            Value::String(name) => vec![name.as_str()],
            Value::Array(names) => {
                names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect()
            }
            _ => Vec::new(),
        };
        match types.first().copied() {
            Some("string") => "text".to_owned(),
            Some("integer") => "integer".to_owned(),
            Some("boolean") => "boolean".to_owned(),
            Some("array") => format!("list of {}", self.name(&present["items"])),
            Some("object") if present["additionalProperties"].is_object() => {
                format!("table of {}", self.name(&present["additionalProperties"]))
            }
            Some("object") => "table".to_owned(),
            _ => {
                let one_of =
                    present["anyOf"].as_array().or(present["oneOf"].as_array()).into_iter().flatten();
                let mut names: Vec<_> = one_of.map(|one| self.name(one)).collect();
                names.sort();
                names.dedup();
                if names.is_empty() { "any".to_owned() } else { names.join(" or ") }
            }
        }
    }

    /// The tables that a choice of tables offers: name, description, schema.
    fn tables<'a>(&'a self, schema: &'a Value) -> Vec<(&'a str, &'a Value)> {
        let alternatives = schema["oneOf"].as_array().into_iter().flatten();
        let alternatives = alternatives.filter_map(|one| one["properties"].as_object());
        let alternatives = alternatives.flat_map(|properties| properties.iter().take(1));
        alternatives.map(|(name, table)| (name.as_str(), self.resolve(table))).collect()
    }

    /// True for what is written as a table of its own, `[path]`.
    fn is_table(&self, schema: &Value) -> bool {
        let present = self.present(schema);
        present["properties"].is_object() || !self.tables(present).is_empty()
    }

    fn describe(&self, path: &str, schema: &Value, depth: usize, page: &mut String) {
        let heading = "#".repeat(depth.min(4));
        writeln!(page, "{heading} {path}\n").unwrap();
        // The schema as a whole is described by the page.
        if let Some(text) = schema["description"].as_str().filter(|_| depth > 2) {
            writeln!(page, "{}\n", lines(text)).unwrap();
        }
        let no_properties = serde_json::Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&no_properties);
        let mut tables: Vec<(String, &Value)> = Vec::new();
        let mut rows = String::new();
        for (name, field) in properties {
            if self.is_table(field) {
                tables.push((name.clone(), self.present(field)));
                continue;
            }
            let text = field["description"].as_str().unwrap_or_default();
            let required =
                schema["required"].as_array().is_some_and(|all| all.contains(&Value::from(name.as_str())));
            let default = match &field["default"] {
                _ if required => "required".to_owned(),
                Value::Null => String::new(),
                value => format!("`{value}`"),
            };
            let limits =
                match (field["minimum"].as_i64().filter(|least| *least > 0), field["maximum"].as_i64()) {
                    (None, None) => String::new(),
                    (Some(least), None) => format!(", from {least}"),
                    (None, Some(most)) => format!(", up to {most}"),
                    (Some(least), Some(most)) => format!(", {least} to {most}"),
                };
            let kind = cell(&self.name(field));
            writeln!(rows, "| `{name}` | {kind}{limits} | {} | {} |", cell(&default), cell(text)).unwrap();
            for (choice, meaning) in choices(self.present(field)) {
                writeln!(rows, "| | `{choice}` | | {} |", cell(&meaning)).unwrap();
            }
        }
        if !rows.is_empty() {
            writeln!(page, "| option | type | default | |\n|---|---|---|---|\n{rows}").unwrap();
        }
        tables.extend(self.tables(schema).into_iter().map(|(name, table)| (name.to_owned(), table)));
        for (name, table) in tables {
            let path = if path == "At the top" { name } else { format!("{path}.{name}") };
            self.describe(&path, table, depth + 1, page);
        }
    }
}

fn reference(schema: &Value) -> Option<&str> {
    let direct = schema["$ref"].as_str();
    let optional = || schema["anyOf"].as_array()?.iter().find_map(|one| one["$ref"].as_str());
    direct.or_else(optional)?.strip_prefix("#/$defs/")
}

/// The words that a value may be, with their descriptions.
fn choices(schema: &Value) -> Vec<(String, String)> {
    let described = schema["oneOf"].as_array().into_iter().flatten().filter_map(|one| {
        let text = one["description"].as_str().unwrap_or_default();
        Some((one["const"].as_str()?.to_owned(), text.to_owned()))
    });
    let plain = schema["enum"].as_array().into_iter().flatten();
    let plain = plain.filter_map(|one| Some((one.as_str()?.to_owned(), String::new())));
    described.chain(plain).collect()
}

fn lines(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_configuration_is_current() {
    let schema = Schema(onceward_cli::config::schema().as_value().clone());
    let mut page = format!(
        "{GENERATED}# Configuration\n\nOne TOML file for each consumer. `onceward init` writes a commented one, `onceward check FILE` checks it, \
         `onceward config show\nFILE` prints the values in force, and `onceward schema` prints the JSON Schema that this page is made from.\n\n\
         A **duration** is text such as `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"8d\"`; a **size** is text such as `\"64KiB\"` or `\"256MiB\"`. \
         `${{NAME}}` inside a\ntext is replaced by an environment variable, and `$${{` for `${{`. Relative paths start from the file's folder. Unknown \
         options are errors.\nThe default of an option may depend on other options; `onceward config show` prints the values in effect.\n\n"
    );
    schema.describe("At the top", &schema.0, 2, &mut page);
    compare("reference/configuration.md", &format!("{}\n", page.trim_end()));
}
