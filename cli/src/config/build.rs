//! The adapters of this build, and the remarks on tables that it lacks.

use onceward_plugin::{FindingDoc, StoreFacts};

use super::Config;
use super::adapters::Adapter;
use super::origin::Origin;
use super::remark::{ConfigError, Remark};
use crate::plugins::REGISTERED;

/// The handlers that the program itself brings.
const HANDLERS: [(&str, Option<&str>, bool); 4] = [
    ("handler.http", Some("http"), cfg!(feature = "http")),
    ("handler.exec", None, true),
    ("handler.worker", None, true),
    ("handler.stdout", None, true),
];

/// Every table that an adapter brings, in the order in which `--version` lists them.
pub fn adapters() -> Vec<Adapter> {
    let registered = |parent: &'static str| {
        let tables = REGISTERED.iter().flat_map(|registered| registered.tables());
        tables.filter(move |adapter| adapter.table.starts_with(parent))
    };
    let handlers = HANDLERS.map(|(table, feature, is_compiled_in)| Adapter {
        table: table.to_owned(),
        feature,
        is_compiled_in,
    });
    registered("source.")
        .chain(registered("store."))
        .chain(handlers)
        .chain(registered("handler."))
        .chain(registered("outbox."))
        .collect()
}

/// What the codes of findings mean, in alphabetical order.
pub fn findings() -> Vec<FindingDoc> {
    let adapters = REGISTERED.iter().flat_map(|adapter| adapter.findings);
    let mut all: Vec<_> =
        adapters.chain(super::advice::FINDINGS).chain(onceward_plugin::FINDINGS).copied().collect();
    all.sort_unstable_by_key(|finding| finding.code);
    all
}

/// The stores of this build that have a property, for a sentence: "[store.a] or [store.b]".
pub(crate) fn stores_with(property: impl Fn(&StoreFacts) -> bool) -> String {
    let stores = REGISTERED.iter().filter(|adapter| adapter.store.as_ref().is_some_and(&property));
    let names: Vec<_> = stores.map(|adapter| format!("[store.{}]", adapter.name)).collect();
    if names.is_empty() { "a build that has such a store".to_owned() } else { names.join(" or ") }
}

/// The first table in the file that this build lacks, as an error that names the fix.
pub(super) fn missing(origin: &Origin) -> Option<ConfigError> {
    missing_of(origin, &adapters()).map(ConfigError)
}

fn missing_of(origin: &Origin, adapters: &[Adapter]) -> Option<Remark> {
    let adapter =
        adapters.iter().find(|adapter| !adapter.is_compiled_in && origin.is_written(&adapter.table))?;
    let fix = match adapter.feature {
        Some(feature) => format!("install one that has it: cargo install onceward-cli --features {feature}"),
        None => "install a build that has it".to_owned(),
    };
    Some(origin.remark(&adapter.table, "this build of onceward does not have it", fix))
}

/// The first part of `[telemetry]` that this build lacks, as an error that names the alternative.
pub fn missing_telemetry(config: &Config) -> Option<ConfigError> {
    telemetry_of(&config.origin).map(ConfigError)
}

fn telemetry_of(origin: &Origin) -> Option<Remark> {
    if origin.is_written("telemetry.otlp") && !cfg!(feature = "otlp") {
        let fix = "remove it, or install one that has it: cargo install onceward-cli --features otlp";
        return Some(origin.remark(
            "telemetry.otlp",
            "this build of onceward exports nothing to a collector",
            fix,
        ));
    }
    if origin.is_written("telemetry.keep_trace_context") && !cfg!(feature = "otlp") {
        let fix = "remove it, or install one that has it: cargo install onceward-cli --features otlp";
        return Some(origin.remark(
            "telemetry.keep_trace_context",
            "this build of onceward exports no traces",
            fix,
        ));
    }
    if origin.is_written("telemetry.listen") && !cfg!(feature = "telemetry") {
        let fix = "remove it, or install one that has it: cargo install onceward-cli --features telemetry";
        return Some(origin.remark("telemetry.listen", "this build of onceward has no listener", fix));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_an_adapter_says_how_to_get_it() {
        let source = "scope = 'a'\n[source.file]\npath = 'f'\n[store.memory]\n[key]\nfrom = ['position']\n\
                      [handler.stdout]\n[dead_letter]\nto = 'd'\n";
        let config = Config::parse(source, &|_| None).unwrap();
        let absent =
            Adapter { table: "source.file".to_owned(), feature: Some("file"), is_compiled_in: false };
        assert_eq!(
            missing_of(&config.origin, &[absent]).unwrap().to_string(),
            "line 2: source.file: this build of onceward does not have it; install one that has it: \
             cargo install onceward-cli --features file"
        );
    }
}
