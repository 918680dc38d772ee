//! The rest of the configuration, as a plugin sees it: [`Context`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use onceward::{HeaderTrust, KeySource, PipelineConfig};

use crate::Problem;
use crate::value::Address;

/// The rest of a configuration: what a plugin's options must agree with, and what paths are relative to.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The dotted path of the plugin's own table, such as `source.kafka`.
    pub table: &'a str,
    /// The directory that relative paths start from: that of the configuration file.
    pub directory: &'a Path,
    /// True for a key that is written in the file rather than left to its default.
    pub is_written: &'a (dyn Fn(&str) -> bool + Sync),
    /// Limits, order, retries and policies, with defaults filled in.
    pub pipeline: &'a PipelineConfig,
    /// The sources of the idempotency key.
    pub key_sources: &'a [KeySource],
    /// The destination of dead letters.
    pub dead_letter: Option<&'a Address>,
    /// Whose `onceward-` headers are trusted.
    pub header_trust: HeaderTrust,
    /// The handler.
    pub handler: HandlerFacts<'a>,
}

/// The handler, as a plugin sees it.
#[derive(Debug, Clone, Copy)]
pub struct HandlerFacts<'a> {
    /// The dotted path of its table, such as `handler.publish.kafka`.
    pub table: &'a str,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// It runs in the store's transaction.
    pub is_transactional: bool,
}

impl<'a> Context<'a> {
    /// The dotted path of the plugin's own table, such as `source.kafka`.
    pub fn table(&self) -> &'a str {
        self.table
    }

    /// The dotted path of one of the plugin's options.
    pub fn key(&self, option: &str) -> String {
        format!("{}.{option}", self.table)
    }

    /// `path` as the configuration file means it: a relative one starts from the file's directory.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        if self.directory == Path::new(".") { path.to_owned() } else { self.directory.join(path) }
    }

    /// True if the option is written in the file.
    pub fn is_written(&self, option: &str) -> bool {
        (self.is_written)(&self.key(option))
    }

    /// A problem of one of the plugin's options.
    pub fn problem(&self, option: &str, problem: impl Into<String>, fix: impl Into<String>) -> Problem {
        Problem::new(self.key(option), problem, fix)
    }

    /// The time limit of one call for a client in the pipeline's way: a little less than the limit that the pipeline sets, so that
    /// the client's own error arrives first.
    pub fn store_call_limit(&self) -> Duration {
        self.pipeline.store_timeout.mul_f64(0.9)
    }

    /// As [`store_call_limit`](Self::store_call_limit), for a publisher that the handler calls, and at most `most`.
    pub fn handler_call_limit(&self, most: Duration) -> Duration {
        self.handler.timeout.mul_f64(0.9).min(most)
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("table", &self.table).finish_non_exhaustive()
    }
}
