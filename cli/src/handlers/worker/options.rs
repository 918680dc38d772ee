//! The options of worker processes: [`WorkerOptions`].

use std::time::Duration;

use onceward::Scope;
use tokio_util::sync::CancellationToken;

use crate::handlers::process::Program;

/// The longest line that a process may write, besides the results of a batch.
const LINE_LIMIT: usize = 4 * 1024 * 1024;

/// Why a run that was asked to stop early did not begin.
pub(super) const NOT_BEGUN: &str = "cancelled before a worker process was ready";

/// The options of a [`WorkerHandler`](super::WorkerHandler).
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The scope, passed to the process as `scope`.
    pub scope: Scope,
    /// The program, which is run without a shell.
    pub program: Program,
    /// The number of processes, each of which handles messages concurrently with the others. 0 means 1.
    pub processes: u32,
    /// The most requests that a process has at once, each on a line of its own; it answers them in any order. 0 means 1.
    pub in_flight: u32,
    /// The most messages on one line. From 2 on each line is an array of requests. 0 means 1.
    pub batch: u32,
    /// The limit of a result, in bytes.
    pub result_limit: usize,
    /// The pause before a restart of a dead process; it doubles until a process responds.
    pub restart_delay: Duration,
    /// The longest pause before a restart.
    pub max_restart_delay: Duration,
    /// The time limit of a message, from the moment its line is made, or a new process begins to read.
    pub timeout: Duration,
    /// The time limit from the start of a process until it reads its first request or, with `wait_until_ready`, is ready; and that
    /// of the wait for a process, after which a message has not begun.
    pub start_timeout: Duration,
    /// True if the processes write `{"ready":true}` when they are ready; they get no request before.
    pub wait_until_ready: bool,
    /// The time between SIGTERM and SIGKILL for a process whose message was cancelled or timed out. It must be shorter than
    /// the `cancel_grace` of the pipeline, after which the run is dropped.
    pub grace: Duration,
    /// Fires when this program shuts down: from then on, a process that a signal ends has not failed.
    pub shutdown: CancellationToken,
}

impl WorkerOptions {
    /// One process with a single message, restarted after 100 ms to 10 s, results of at most [`RESULT_LIMIT`](crate::handlers::RESULT_LIMIT), 30 s for the
    /// start and for each message, 4 s after SIGTERM.
    pub fn new(scope: Scope, program: Program) -> Self {
        Self {
            scope,
            program,
            processes: 1,
            in_flight: 1,
            batch: 1,
            result_limit: crate::handlers::RESULT_LIMIT,
            restart_delay: Duration::from_millis(100),
            max_restart_delay: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(30),
            wait_until_ready: false,
            grace: Duration::from_secs(4),
            shutdown: CancellationToken::new(),
        }
    }

    /// The longest line that a process may write, in bytes.
    pub(super) fn line_limit(&self) -> usize {
        let results = self.batch.saturating_sub(1) as usize;
        LINE_LIMIT.saturating_add(results.saturating_mul(self.result_limit))
    }

    /// True if a process may have several messages at once.
    pub(super) fn has_neighbours(&self) -> bool {
        self.in_flight > 1 || self.batch > 1
    }
}
