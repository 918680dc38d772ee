//! The configuration of the `onceward` program: reads TOML, and returns checked values or one error.
//!
//! Relative paths in a file start from that file's own directory: [`Config::resolve`].
//!
//! Everything here is pure apart from [`Config::load`], which reads one file. The environment is passed in. No error prints a
//! value of the file, and secrets are redacted by `Debug` and [`Config::to_toml`].

pub(crate) mod adapters;
mod advice;
mod build;
mod check;
mod context;
mod core;
mod derived;
mod document;
mod env;
mod fault;
mod fingerprint;
mod handler;
mod key;
mod key_table;
mod load;
mod origin;
mod pipeline;
mod policy;
mod read;
mod remark;
mod syntax;

use schemars::Schema;

pub use adapters::Adapter;
pub(crate) use build::stores_with;
pub use build::{adapters as adapter_tables, findings, missing_telemetry};
pub(crate) use context::Contexts;
pub(crate) use core::{key_extractor, key_source, pipeline_config, scope};
pub use document::{Config, Guarantee, Mode};
pub use env::Lookup;
pub use fingerprint::FingerprintConfig;
pub use handler::{
    ExecHandler, Handler, HandlerProgram, HttpHandler, Meaning, SqlHandler, StdoutHandler, WorkerHandler,
};
pub use key::{KeyPart, KeySource, NotAKeyPart, OrderBy};
pub use key_table::KeyConfig;
pub use onceward_plugin::value::{
    Address, ByteCount, HookUrl, HumanDuration, NotADuration, REDACTED, Secret,
};
pub use onceward_plugin::{FindingDoc, StoreLimits};
pub use pipeline::{
    DeadLetterConfig, Jitter, LogFormat, Ordering, PipelineConfig, RetryConfig, TelemetryConfig,
};
pub use policy::{
    OnCompleted, OnExhausted, OnInProgress, OnLetterRefused, OnMismatch, OnMissingKey, OnStoreDown,
    OwnHeaders, PolicyConfig,
};
pub use remark::{Advice, ConfigError, Remark};

pub use crate::plugins::{OutboxConfig, PublishTarget, Source, Store};

/// A starter file with comments, which parses as it is.
pub const STARTER: &str = include_str!("starter.toml");

/// The JSON Schema of the file, with descriptions and defaults.
pub fn schema() -> Schema {
    schemars::schema_for!(Config)
}
