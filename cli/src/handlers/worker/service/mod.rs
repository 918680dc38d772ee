//! Task that passes requests to one process and its answers back: [`start`].

mod answers;
mod end;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use onceward::HandlerError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::open::{OpenRequest, OpenRequests};
use super::options::WorkerOptions;
use super::process::{PipeEvent, WorkerProcess};
use crate::handlers::gather::{GatheredRun, StopReason};
use crate::handlers::json;
use crate::handlers::suspects::SuspectRuns;

/// The interval of checks whether a new process has begun to read its first request.
const READ_CHECK: Duration = Duration::from_millis(20);

/// What a process is sent by its owner. Without an owner it ends once its requests are answered.
pub(super) enum ToProcess {
    /// Runs whose requests are written together.
    Runs(Vec<GatheredRun>),
    /// Has it end by itself within this time.
    ShutDown(Duration),
}

/// How far a process is.
#[derive(Clone, Debug)]
pub(super) enum ProcessLife {
    Starting,
    /// It has reported that it is ready, or has read a request.
    Warm,
    /// Why it has ended before.
    Ended(String),
}

impl ProcessLife {
    pub(super) fn is_warm(&self) -> bool {
        matches!(self, Self::Warm)
    }
}

/// The owner of a process, which has started it.
pub(super) trait ProcessOwner: Send + 'static {
    /// The process takes no more requests: another one may start, after a backoff if it `failed`.
    fn retire(&self, failed: bool);

    /// The process has answered.
    fn answered(&self);
}

/// The parts of a service.
pub(super) struct ServiceParts {
    pub(super) options: Arc<WorkerOptions>,
    pub(super) suspects: Arc<SuspectRuns>,
    pub(super) owner: Box<dyn ProcessOwner>,
    pub(super) inbox: mpsc::UnboundedReceiver<ToProcess>,
    pub(super) life: watch::Sender<ProcessLife>,
    /// Whether standard error is logged before the first answer.
    pub(super) is_heard: bool,
}

/// Starts process number `index` and the task that serves it, which returns false if the process had to be killed at a shutdown.
///
/// # Errors
/// The process cannot be started.
pub(super) fn start(parts: ServiceParts, index: usize) -> io::Result<JoinHandle<bool>> {
    let process = WorkerProcess::start(&parts.options, index, parts.is_heard)?;
    let service = WorkerService {
        parts,
        process,
        pending: VecDeque::new(),
        line: Vec::new(),
        sent: 0,
        open: OpenRequests::default(),
        stops: FuturesUnordered::new(),
        last_id: 0,
        first_asked: None,
        is_ready: false,
        reads: false,
        is_retired: false,
        is_terminated: false,
    };
    Ok(tokio::spawn(service.serve()))
}

/// The process has ended, and all its runs.
struct ServiceEnd;

enum ServiceEvent {
    Pipe(PipeEvent),
    Stop(u64, StopReason),
    Owner(Option<ToProcess>),
    Tick,
}

struct WorkerService {
    parts: ServiceParts,
    process: WorkerProcess,
    /// Runs of which nothing is written, by the lines that they will share.
    pending: VecDeque<Vec<(u64, GatheredRun)>>,
    /// The line that is being written, and how much of it is.
    line: Vec<u8>,
    sent: usize,
    open: OpenRequests,
    stops: FuturesUnordered<BoxFuture<'static, (u64, StopReason)>>,
    last_id: u64,
    first_asked: Option<Instant>,
    /// It has reported that it is ready.
    is_ready: bool,
    /// It has begun to read a request: from now on its time counts against the limit of the handler.
    reads: bool,
    /// It takes no more requests.
    is_retired: bool,
    is_terminated: bool,
}

impl WorkerService {
    async fn serve(mut self) -> bool {
        loop {
            let until = self.next_tick();
            let bytes = self.line.get(self.sent..).unwrap_or_default();
            let event = tokio::select! {
                biased;
                Some((id, why)) = self.stops.next() => ServiceEvent::Stop(id, why),
                // A process that never stops writing must not outlive its time.
                () = tokio::time::sleep_until(until) => ServiceEvent::Tick,
                event = self.process.exchange(bytes) => ServiceEvent::Pipe(event),
                asked = self.parts.inbox.recv(), if !self.is_retired => ServiceEvent::Owner(asked),
            };
            let ended = match event {
                ServiceEvent::Pipe(PipeEvent::Read(line)) => self.read(line).await,
                ServiceEvent::Pipe(PipeEvent::Sent(Ok(more @ 1..))) => {
                    self.sent += more;
                    self.write_next();
                    None
                }
                ServiceEvent::Pipe(PipeEvent::Sent(_)) => Some(self.died("broke its pipe").await),
                ServiceEvent::Stop(id, why) => self.stop(id, why).await,
                ServiceEvent::Owner(Some(ToProcess::Runs(runs))) => self.take(runs).await,
                ServiceEvent::Owner(Some(ToProcess::ShutDown(limit))) => {
                    return self.process.shut_down(limit).await;
                }
                ServiceEvent::Owner(None) => {
                    self.retire(false);
                    self.end_if_done().await
                }
                ServiceEvent::Tick => self.tick(Instant::now()).await,
            };
            if let Some(ServiceEnd) = ended {
                return true;
            }
        }
    }

    fn is_usable(&self) -> bool {
        self.is_ready || !self.parts.options.wait_until_ready
    }

    fn is_idle(&self) -> bool {
        self.open.is_empty() && self.pending.is_empty()
    }

    /// The end of the time for the start, while that is not over.
    fn start_until(&self) -> Option<Instant> {
        let options = &self.parts.options;
        if !self.is_usable() {
            return Some(self.process.started + options.start_timeout);
        }
        let asked = self.first_asked.filter(|_| !self.reads && !self.open.is_empty())?;
        // It may have been started long before the first request.
        Some(self.process.started.max(asked) + options.start_timeout)
    }

    fn next_tick(&self) -> Instant {
        let now = Instant::now();
        let options = &self.parts.options;
        let check = (!self.reads && !self.open.is_empty()).then(|| now + READ_CHECK);
        let stop = self
            .open
            .stop_times(options.grace)
            .map(|(term, kill)| if self.is_terminated { kill } else { term });
        [self.start_until(), check, stop, self.open.next_late(options.timeout)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + Duration::from_secs(3600))
    }

    /// Takes runs, whose requests are written as soon as the process can take them.
    async fn take(&mut self, runs: Vec<GatheredRun>) -> Option<ServiceEnd> {
        self.first_asked.get_or_insert_with(Instant::now);
        let mut line = Vec::with_capacity(runs.len());
        for run in runs {
            self.last_id += 1;
            self.stops.push(run.stopped(self.last_id));
            line.push((self.last_id, run));
        }
        self.pending.push_back(line);
        if self.is_idle_but_dead() {
            return Some(self.died("closed its standard output").await);
        }
        self.write_next();
        None
    }

    /// It has ended between requests, and something that it started keeps its pipes open.
    fn is_idle_but_dead(&mut self) -> bool {
        self.open.is_empty() && !self.process.is_alive()
    }

    /// Begins to write the next line, once the last one is written.
    fn write_next(&mut self) {
        if self.sent < self.line.len() || !self.is_usable() {
            return;
        }
        // A line is not needed while the worker works.
        (self.line, self.sent) = (Vec::new(), 0);
        while self.line.is_empty()
            && let Some(runs) = self.pending.pop_front()
        {
            self.write(runs);
        }
    }

    fn write(&mut self, runs: Vec<(u64, GatheredRun)>) {
        let options = Arc::clone(&self.parts.options);
        let is_array = options.batch > 1;
        let begun = self.reads.then(Instant::now);
        let mut written = Vec::with_capacity(runs.len());
        for (id, mut run) in runs {
            let Some(message) = run.message.take() else { continue };
            let separator = if written.is_empty() { &b"["[..] } else { b"," };
            let before = self.line.len();
            if is_array {
                self.line.extend_from_slice(separator);
            }
            match json::write(&mut self.line, id, &options.scope, &message) {
                Ok(()) => written.push((id, run)),
                Err(cause) => {
                    self.line.truncate(before);
                    run.end(Err(HandlerError::permanent(format!("cannot write it as JSON: {cause}"))));
                }
            }
        }
        if written.is_empty() {
            return;
        }
        self.line.extend_from_slice(if is_array { b"]\n" } else { b"\n" });
        let start = self.process.written();
        let bytes = start..start + self.line.len() as u64;
        for (id, run) in written {
            let request = OpenRequest { run, bytes: bytes.clone(), begun, stopping: None };
            self.open.0.insert(id, request);
        }
    }
}
