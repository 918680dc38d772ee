//! The configuration of the `onceward` program: TOML in, checked values or one sentence out.
//!
//! Relative paths in a file start from that file's own directory: [`Config::resolve`].
//!
//! Everything here is pure but [`Config::load`], which reads the one file it is given. The environment is handed in; no
//! value of the file is ever printed by an error, and secrets are redacted by `Debug` and [`Config::to_toml`].

pub(crate) mod adapters;
mod advice;
mod build;
mod check;
mod context;
mod core;
mod derived;
mod env;
mod fault;
mod fingerprint;
mod handler;
mod key;
mod origin;
mod pipeline;
mod policy;
mod read;
mod remark;
mod syntax;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

pub use adapters::Adapter;
pub(crate) use build::stores_with;
pub use build::{adapters as adapter_tables, missing_telemetry};
pub(crate) use context::Contexts;
pub(crate) use core::{key_extractor, key_source, pipeline_config, scope};
pub use env::Lookup;
pub use fingerprint::FingerprintConfig;
pub use handler::{
    ExecHandler, Handler, HandlerProgram, HttpHandler, Meaning, SqlHandler, StdoutHandler, WorkerHandler,
};
pub use key::{KeyConfig, KeyPart, KeySource, NotAKeyPart, OrderBy};
pub use onceward_plugin::StoreLimits;
pub use onceward_plugin::value::{
    Address, ByteCount, HookUrl, HumanDuration, NotADuration, REDACTED, Secret,
};
pub use pipeline::{
    DeadLetterConfig, Jitter, LogFormat, Ordering, PipelineConfig, RetryConfig, TelemetryConfig,
};
pub use policy::{
    OnCompleted, OnExhausted, OnInProgress, OnLetterRefused, OnMismatch, OnMissingKey, OnStoreDown,
    OwnHeaders, PolicyConfig,
};
pub use remark::{Advice, ConfigError, Remark};

pub use crate::plugins::{OutboxConfig, PublishTarget, Source, Store};

use crate::handlers::text::io_words;

use fault::Step;
use onceward_plugin::choice;
use origin::{Lines, Origin, join};

/// A starter file with comments, which parses as it is.
pub const STARTER: &str = include_str!("starter.toml");

/// A checked configuration: every value is within its limits and agrees with the others, and defaults that depend on
/// other values are filled in (`key.from`, `pipeline.ordering`).
///
/// It does not say whether what it names is reachable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Configuration of the onceward program")]
pub struct Config {
    /// Whose keys these are: the consumer, and the tenant if there is one. Two scopes handle the same message once each.
    pub scope: String,
    /// What is promised. More than the parts can give is refused.
    #[serde(default)]
    pub guarantee: Guarantee,
    /// Whether duplicates are suppressed or only measured.
    #[serde(default)]
    pub mode: Mode,
    /// Where messages come from.
    pub source: Source,
    /// Where keys are remembered.
    pub store: Store,
    /// What makes two deliveries the same message.
    #[serde(default)]
    pub key: KeyConfig,
    /// What is done with each message.
    pub handler: Handler,
    /// How many messages run at a time, and in which order.
    #[serde(default)]
    pub pipeline: PipelineConfig,
    /// How failed messages are tried again.
    #[serde(default)]
    pub retry: RetryConfig,
    /// Where messages go that cannot be handled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterConfig>,
    /// What is done where there is a choice.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// What is done with messages that handlers put into the store's outbox.
    #[serde(default)]
    pub outbox: OutboxConfig,
    /// What is told about a run.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    #[serde(skip)]
    origin: Origin,
}

choice! {
    /// What is promised about effects.
    Guarantee {
        /// One effect for each key in the TTL, as long as an error means that nothing happened and no owner dies
        /// between effect and completion.
        #[default]
        Deduplicated,
        /// Exactly one committed effect for each key in the TTL: the completion is in the effect's own transaction.
        EffectivelyOnce,
    }
}

choice! {
    /// Whether duplicates are suppressed.
    Mode {
        /// They are suppressed.
        #[default]
        Enforce,
        /// Nothing is suppressed; duplicates are measured.
        Observe,
    }
}

impl Config {
    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    /// One sentence: the file cannot be read, or what [`Config::parse`] refuses, with the file's name.
    pub fn load(path: &Path, env: Lookup<'_>) -> Result<Self, ConfigError> {
        let source = std::fs::read_to_string(path).map_err(|error| {
            let fix = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "give the path of a configuration, or write one with `onceward init`"
                }
                std::io::ErrorKind::InvalidData => "save it as UTF-8",
                _ => "make the file readable",
            };
            ConfigError(Remark::new(format!("cannot be read ({})", io_words(&error)), fix).file(path))
        })?;
        Self::parse_file(Some(path), &source, env)
    }

    /// Parses and checks a configuration's text. `env` answers for `${NAME}` in its string values.
    ///
    /// # Errors
    /// The first thing that is wrong, in one sentence with line, key and fix, never with a value.
    pub fn parse(source: &str, env: Lookup<'_>) -> Result<Self, ConfigError> {
        Self::parse_file(None, source, env)
    }

    fn parse_file(file: Option<&Path>, source: &str, env: Lookup<'_>) -> Result<Self, ConfigError> {
        let lines = Lines::of(source);
        let in_file = |remark: Remark| match file {
            Some(file) => ConfigError(remark.file(file)),
            None => ConfigError(remark),
        };
        let mut table = syntax::parse(source, &lines).map_err(in_file)?;
        let written = env::substitute(table.get_mut(), env, &lines).map_err(in_file)?;
        let origin = Origin::of(file, table.get_ref(), &lines, written);
        if let Some(missing) = build::missing(&origin) {
            return Err(missing);
        }
        let mut config: Self =
            read::read(table).map_err(|fault| ConfigError(origin.place(&fault, &lines)))?;
        config.origin = origin;
        config.fill_in()?;
        check::check(&config)?;
        Ok(config)
    }

    /// Gives the defaults that depend on other values.
    fn fill_in(&mut self) -> Result<(), ConfigError> {
        if self.key.from.is_empty() {
            if self.origin.is_written("key.from") {
                return Err(self.refuse(
                    "key.from",
                    "is an empty list",
                    "name at least one source, such as message-id",
                ));
            }
            self.key.from = KeyConfig::default_for(&self.source.plugin().facts()).ok_or_else(|| {
                self.refuse(
                    "key.from",
                    "is missing, and a file source has no message identity to fall back on",
                    r#"add `from` to [key], such as from = ["json:/id"] or from = ["position"]"#,
                )
            })?;
        }
        derived::derive(self);
        Ok(())
    }

    /// Whose `onceward-` headers are believed, whether written or not.
    pub fn own_headers(&self) -> OwnHeaders {
        let by_default = match self.source.plugin().facts().is_private {
            true => OwnHeaders::Trusted,
            false if self.key.has_secret() => OwnHeaders::Authenticated,
            false => OwnHeaders::Ignore,
        };
        self.policy.own_headers.unwrap_or(by_default)
    }

    /// The order that is kept, whether written or not.
    pub fn ordering(&self) -> Ordering {
        self.pipeline.ordering.unwrap_or_default()
    }

    /// The directory that relative paths in this file start from: the file's own, wherever the program is started.
    pub fn directory(&self) -> &Path {
        let parent = self.origin.file().and_then(Path::parent);
        parent.filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// `path` as this file means it: a relative one starts from [`directory`](Self::directory).
    pub fn resolve(&self, path: &Path) -> PathBuf {
        match self.directory() {
            here if here == Path::new(".") => path.to_owned(),
            directory => directory.join(path),
        }
    }

    /// The names of the variables that `${…}` in this file stands for.
    pub(crate) fn variables(&self) -> BTreeSet<String> {
        self.origin.with_any_variables().flat_map(env::names).collect()
    }

    /// An error about one key of this configuration, with its file and line, for what is only found out later.
    pub fn refuse(&self, key: &str, problem: impl Into<String>, fix: impl Into<String>) -> ConfigError {
        ConfigError(self.origin.remark(key, problem, fix))
    }

    /// The limits that every store keeps.
    pub fn limits(&self) -> StoreLimits {
        self.store.plugin().limits()
    }

    /// The files with passwords or private keys that are named, each with the key that names it.
    pub fn secret_files(&self) -> Vec<(String, PathBuf)> {
        Contexts::of(self).secret_files()
    }

    /// What will run, but probably not as intended; in the order of the file.
    pub fn advice(&self) -> Vec<Advice> {
        advice::advice(self)
    }

    /// The effective configuration, defaults included and secrets redacted, as TOML that parses again.
    ///
    /// Commands and statements show their variables as they are written, `${NAME}`: what is in those may be a password,
    /// and nothing in their texts tells. Arguments of a command without variables are redacted for the same reason.
    ///
    /// # Errors
    /// A value that TOML cannot hold; no checked configuration has one.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut table = toml::Table::try_from(self)?;
        table.iter_mut().for_each(|(key, value)| self.show(key, value));
        toml::to_string_pretty(&table)
    }

    /// Makes what stands at `path` fit to be printed and read again. A text that holds `${` has to say so, or it would
    /// be taken for a variable.
    fn show(&self, path: &str, value: &mut toml::Value) {
        match value {
            toml::Value::String(text) => {
                let is_free = path.ends_with(".statement") || path.contains(".command[");
                let is_argument = path.contains(".command[") && !path.ends_with(".command[0]");
                *text = match self.origin.with_variables(path).filter(|_| is_free) {
                    Some(written) if !text.contains(REDACTED) => written.to_owned(),
                    _ if is_argument && !text.contains(REDACTED) => REDACTED.to_owned(),
                    _ => env::escape(text),
                };
            }
            toml::Value::Array(items) => items.iter_mut().enumerate().for_each(|(index, item)| {
                self.show(&join(path, &Step::Index(index)), item);
            }),
            toml::Value::Table(table) => {
                for (key, value) in table.iter_mut() {
                    self.show(&join(path, &Step::Key(key.clone())), value);
                }
            }
            _ => {}
        }
    }
}

/// The JSON Schema of the file, with descriptions and defaults.
pub fn schema() -> Schema {
    schemars::schema_for!(Config)
}
