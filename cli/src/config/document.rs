//! The configuration as a whole: [`Config`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use onceward_plugin::value::REDACTED;
use onceward_plugin::{StoreLimits, choice};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::env;
use super::fault::PathStep;
use super::handler::Handler;
use super::key_table::KeyConfig;
use super::origin::{Origin, join};
use super::pipeline::{DeadLetterConfig, Ordering, PipelineConfig, RetryConfig, TelemetryConfig};
use super::policy::{OwnHeaders, PolicyConfig};
use super::remark::{Advice, ConfigError};
use crate::plugins::{OutboxConfig, Source, Store};

/// A checked configuration: every value is within its limits and agrees with the others, and defaults that depend on
/// other values are filled in (`key.from`, `pipeline.ordering`).
///
/// It does not show whether the services it names are reachable.
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
    /// How many messages run concurrently, and in which order.
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
    /// What is reported about a run.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    #[serde(skip)]
    pub(super) origin: Origin,
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

    /// The names of the variables that this file refers to with `${…}`.
    pub(crate) fn variables(&self) -> BTreeSet<String> {
        self.origin.with_any_variables().flat_map(env::names).collect()
    }

    /// An error about one key of this configuration, with its file and line, for problems that are detected later.
    pub fn refuse(&self, key: &str, problem: impl Into<String>, fix: impl Into<String>) -> ConfigError {
        ConfigError(self.origin.remark(key, problem, fix))
    }

    /// Advice about the key.
    pub(crate) fn warn(
        &self,
        code: &'static str,
        key: &str,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> Advice {
        Advice(self.origin.remark(key, problem, fix).code(code))
    }

    /// The limits that every store keeps.
    pub fn limits(&self) -> StoreLimits {
        self.store.plugin().limits()
    }

    /// The effective configuration, defaults included and secrets redacted, as TOML that parses again.
    ///
    /// Commands and statements show their variables as they are written, `${NAME}`: their values may be passwords, and
    /// nothing in the texts shows it. Arguments of a command without variables are redacted for the same reason.
    ///
    /// # Errors
    /// A value that TOML cannot hold; no checked configuration has one.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut table = toml::Table::try_from(self)?;
        table.iter_mut().for_each(|(key, value)| self.show(key, value));
        toml::to_string_pretty(&table)
    }

    /// Makes the value at `path` fit to be printed and read again. A text that holds `${` has to be escaped, or it
    /// would be taken for a variable.
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
                self.show(&join(path, &PathStep::Index(index)), item);
            }),
            toml::Value::Table(table) => {
                for (key, value) in table.iter_mut() {
                    self.show(&join(path, &PathStep::Key(key.clone())), value);
                }
            }
            _ => {}
        }
    }
}
