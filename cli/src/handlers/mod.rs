//! The handlers of the program: what a message can be given to, in any language.
//!
//! | handler | one message is |
//! |---|---|
//! | [`ExecHandler`] | one process: payload on standard input, the rest in `ONCEWARD_*` variables |
//! | [`WorkerHandler`] | one JSON line to a long-lived process, and one JSON line back |
//! | [`HttpHandler`] | one POST (feature `http`) |
//! | [`StdoutHandler`] | one line on standard output |
//! | [`PublishHandler`] | one confirmed publish to another broker |
//!
//! A statement in the transaction of its completion is the handler of a store's own: `SqliteSqlHandler`, `PgSqlHandler`.
//!
//! Each is built from plain options; mapping the configuration file to them is the registry's work. None of them
//! settles, retries or deduplicates: that is the pipeline's.

mod children;
mod environment;
mod exec;
mod headers;
#[cfg(feature = "http")]
mod http;
mod interpreter;
mod lines;
mod meaning;
mod payload;
mod process;
mod publish;
mod stdout;
mod stop;
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
pub use meaning::{ExitCodes, Meaning, Statuses};
pub use process::Program;
pub use publish::PublishHandler;
pub use stdout::StdoutHandler;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use worker::fuzzing as worker_lines;
pub use worker::{WorkerHandler, WorkerOptions};

/// The largest result a handler keeps unless told otherwise, in bytes: 64 KiB.
pub const RESULT_LIMIT: usize = 64 * 1024;
