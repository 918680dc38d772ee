//! Handlers of the program, for code in any language.
//!
//! | handler | one message becomes |
//! |---|---|
//! | [`ExecHandler`] | one process: payload on standard input, the rest in `ONCEWARD_*` variables |
//! | [`WorkerHandler`] | one JSON line to a long-lived process, and one JSON line back |
//! | [`HttpHandler`] | one POST (feature `http`) |
//! | [`StdoutHandler`] | one line on standard output |
//! | [`PublishHandler`] | one confirmed publish to another broker |
//!
//! `[handler.sql]`, a statement in the transaction of its completion, is executed by the store.
//!
//! Each is built from plain options, which the registry reads from the configuration. None of them settles, retries or
//! deduplicates: the pipeline does.

mod children;
mod environment;
mod exec;
mod gather;
mod headers;
#[cfg(feature = "http")]
mod http;
mod interpreter;
mod json;
mod ledger;
mod lines;
mod meaning;
mod payload;
mod process;
mod publish;
mod stdout;
mod stop;
mod suspects;
pub(crate) mod text;
mod token;
mod variables;
mod worker;

pub(crate) use children::reap_orphans;
pub(crate) use environment::EVERYTHING;
pub use environment::Environment;
pub use exec::{ExecHandler, ExecOptions};
#[cfg(feature = "http")]
pub use http::{HttpHandler, HttpOptions, install_tls_provider};
pub(crate) use ledger::{Ledger, LedgerHandler, Mark};
pub use meaning::{ExitCodes, Meaning, Statuses};
pub use process::Program;
pub use publish::PublishHandler;
pub use stdout::StdoutHandler;
pub(crate) use suspects::SUSPECT_LIMIT;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use worker::fuzzing as worker_lines;
pub use worker::{WorkerHandler, WorkerOptions};

/// The default limit of a result, in bytes: 64 KiB.
pub const RESULT_LIMIT: usize = 64 * 1024;
