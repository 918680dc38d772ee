//! The thread of a transform: consumes batches, transforms them, and hands them over to the thread that commits them.
//!
//! There are two batches at most. While the first one is produced and committed, the second one is consumed and transformed, part by
//! part; it is submitted when the first one is settled, and grows until then. While a part is transformed the next one is consumed:
//!
//! ```text
//! this thread    collect ─▶ start part ─▶ collect ─▶ finish part ─▶ … ─▶ submit 1 ─▶ collect ─▶ … ─▶ settle 1 ─▶ submit 2 …
//! the other one                                                          └▶ produce 1 ─▶ commit 1 ───┘            └▶ …
//! ```
//!
//! If the first one does not commit, its partitions are rewound, and what the second one has of them is dropped: each record refers
//! to its partition as it was assigned ([`PartitionAssignment`](super::assignment::PartitionAssignment)), which a rewind ends like a
//! revocation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use onceward::store::Reason;
use onceward::{Error, ErrorKind};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::dead_letter::without_payload;
use crate::transform::batch::{BatchRecord, TransformedBatch, dead_letter, transform_records};
use crate::transform::config::TransformConfig;
use crate::transform::function::Transform;
use crate::transform::offsets::offsets_after;
use crate::transform::producing_thread::{EndedBatch, ProducingThread, SubmittedBatch};
use crate::transform::running_transaction::RunningTransaction;
use crate::transform::source::TransformSource;
use crate::transform::summary::TransformSummary;
use crate::transform::transactions::TransactionOutcome;

/// The timeout of a poll for the first record of a batch.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);
/// The same for a batch that is due, when the one before is committed.
const DUE_POLL_TIMEOUT: Duration = Duration::from_millis(5);
/// The most records that are transformed at once.
const MAX_PART: usize = 5000;
/// After this time a transformation or a commit is waited for by polling the client, which keeps the membership.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// The delay before resuming the partitions is tried again.
const RESUME_DELAY: Duration = Duration::from_millis(100);

const OPERATION: &str = "run a transform";

pub(super) struct TransformWorker<T> {
    config: Arc<TransformConfig>,
    transform: Arc<T>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
    /// Joined before the source is closed.
    producing: ProducingThread,
    /// A batch is submitted, and its outcome is not settled.
    is_submitted: bool,
    source: TransformSource,
    /// Records consumed while a transformation or a commit was waited for.
    ahead: Vec<BatchRecord>,
    /// The batch that is collected.
    next: TransformedBatch,
    /// What was consumed for it last, while it is transformed.
    part: Option<RunningPart>,
    /// The number and bytes of its records, and when it is to be submitted.
    next_records: usize,
    next_bytes: usize,
    due: Option<Instant>,
    /// The batch that was committed last, which takes time to free: the next one is submitted before.
    spent: Option<TransformedBatch>,
    summary: TransformSummary,
}

impl<T: Transform> TransformWorker<T> {
    /// Connects. Blocks up to a minute.
    ///
    /// # Errors
    /// The clients cannot be created, or the cluster does not answer.
    pub(super) fn open(
        config: TransformConfig,
        transform: T,
        runtime: Handle,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let (config, transform) = (Arc::new(config), Arc::new(transform));
        let open = Arc::new(RunningTransaction::default());
        let producing = ProducingThread::start(&config, Arc::clone(&open))?;
        let source = TransformSource::open(&config, open)?;
        Ok(Self {
            config,
            transform,
            runtime,
            stop,
            producing,
            is_submitted: false,
            source,
            ahead: Vec::new(),
            next: TransformedBatch::default(),
            part: None,
            next_records: 0,
            next_bytes: 0,
            due: None,
            spent: None,
            summary: TransformSummary::default(),
        })
    }

    pub(super) fn run(mut self) -> Result<TransformSummary, Error> {
        while !self.is_stopped() {
            let records = self.collect()?;
            if !self.finish_part()? {
                break;
            }
            self.start_part(records);
            let is_due = self.due.is_some_and(|at| Instant::now() >= at);
            if self.is_full() || is_due && !self.is_submitted {
                if !self.finish_part()? {
                    break;
                }
                self.submit_next()?;
            }
        }
        // A part that is dropped was consumed after all that is transformed.
        self.finish_part()?;
        self.submit_next()?;
        self.settle_submitted()?;
        Ok(self.summary)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Returns true if the next batch has no room left.
    fn is_full(&self) -> bool {
        self.next_records >= self.config.batch_records || self.next_bytes >= self.config.batch_bytes
    }

    /// Consumes records for the next batch, until it is due or has enough of them. Empty if nothing came.
    fn collect(&mut self) -> Result<Vec<BatchRecord>, Error> {
        let mut records = std::mem::take(&mut self.ahead);
        let mut now = Instant::now();
        if !records.is_empty() {
            self.next_records += records.len();
            self.next_bytes += records.iter().map(|own| own.message.size()).sum::<usize>();
            self.due.get_or_insert(now + self.config.linger);
        }
        while records.len() < MAX_PART && !self.is_full() {
            let left =
                self.due.map_or(POLL_TIMEOUT, |at| at.saturating_duration_since(now).min(POLL_TIMEOUT));
            let wait = if left.is_zero() { DUE_POLL_TIMEOUT } else { left };
            let polled = self.source.poll(now, wait)?;
            self.settle_ended()?;
            now = Instant::now();
            let is_idle = polled.is_none();
            if let Some(own) = polled {
                self.next_records += 1;
                self.next_bytes += own.message.size();
                records.push(own);
                self.due.get_or_insert_with(|| now + self.config.linger);
            }
            // A batch that is due grows while the one before is committed.
            let is_done = match self.due {
                None => is_idle,
                Some(at) => now >= at && (is_idle || !self.is_submitted),
            };
            if is_done || self.is_stopped() {
                break;
            }
        }
        records.retain(|own| own.from.is_current());
        Ok(records)
    }

    /// Starts to transform a part of the next batch, after the part before is finished.
    fn start_part(&mut self, records: Vec<BatchRecord>) {
        if records.is_empty() {
            return;
        }
        let (answer, answered) = mpsc::channel();
        let (config, transform) = (Arc::clone(&self.config), Arc::clone(&self.transform));
        let running = self.runtime.spawn(async move {
            let produced = transform_records(&config, &*transform, &records).await;
            // The worker may have stopped.
            let _ = answer.send(produced.map(|produced| TransformedBatch { records, produced }));
        });
        self.part = Some(RunningPart { answered, task: running.abort_handle() });
    }

    /// Waits until the running part, if any, is transformed. Returns false if the worker stops: the part is dropped, and nothing that was
    /// consumed later may be committed.
    fn finish_part(&mut self) -> Result<bool, Error> {
        let Some(part) = self.part.take() else { return Ok(true) };
        let receive = |own: &mut Self, limit| {
            // Its records may have to be submitted again before this part can be.
            own.settle_ended()?;
            if own.is_stopped() && limit == Duration::ZERO {
                return Ok(Waited::Stopped);
            }
            Ok(part.answered.recv_timeout(limit).map_or_else(Waited::from, Waited::Answered))
        };
        let Some(transformed) = self.wait(receive)? else { return Ok(false) };
        self.next.append(transformed?);
        Ok(true)
    }

    /// Waits for an answer, and polls the client meanwhile if that takes long.
    fn wait<A>(
        &mut self,
        receive: impl Fn(&mut Self, Duration) -> Result<Waited<A>, Error>,
    ) -> Result<Option<A>, Error> {
        let (mut limit, mut paused_at) = (IDLE_WAIT, None);
        let answer = loop {
            match receive(self, limit)? {
                Waited::Answered(answer) => break Some(answer),
                Waited::Stopped => break None,
                Waited::Panicked => return Err(panicked()),
                Waited::InVain => limit = Duration::ZERO,
            }
            // Once, and again after each assignment.
            let changes = self.source.changes();
            if paused_at != Some(changes) && self.source.set_paused(true) {
                paused_at = Some(changes);
            }
            if let Some(own) = self.source.poll(Instant::now(), POLL_TIMEOUT)? {
                self.ahead.push(own);
            }
        };
        while paused_at.is_some() && answer.is_some() && !self.source.set_paused(false) {
            std::thread::sleep(RESUME_DELAY);
        }
        Ok(answer)
    }

    /// Submits the next batch, after the one before is settled: what was consumed later is committed later.
    fn submit_next(&mut self) -> Result<(), Error> {
        self.settle_submitted()?;
        let batch = std::mem::take(&mut self.next);
        (self.next_records, self.next_bytes, self.due) = (0, 0, None);
        self.submit(batch, false)?;
        self.spent = None;
        Ok(())
    }

    /// Submits a batch to the other thread, unless there is nothing left of it.
    fn submit(&mut self, mut batch: TransformedBatch, is_repeated: bool) -> Result<(), Error> {
        batch.drop_outdated();
        if batch.records.is_empty() {
            return Ok(());
        }
        let (offsets, group) = (offsets_after(&batch.records)?, self.source.group()?);
        self.producing.submit(SubmittedBatch { batch, is_repeated, offsets, group })?;
        self.is_submitted = true;
        Ok(())
    }

    /// Settles the outcome of the submitted batch, if there is one already.
    fn settle_ended(&mut self) -> Result<(), Error> {
        if !self.is_submitted {
            return Ok(());
        }
        match self.producing.ended(Duration::ZERO) {
            Ok(ended) => self.settle(ended),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(panicked()),
        }
    }

    /// Waits until no batch is submitted.
    fn settle_submitted(&mut self) -> Result<(), Error> {
        while self.is_submitted {
            let receive = |own: &mut Self, limit| {
                Ok(own.producing.ended(limit).map_or_else(Waited::from, Waited::Answered))
            };
            if let Some(ended) = self.wait(receive)? {
                self.settle(ended)?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, ended: EndedBatch) -> Result<(), Error> {
        self.is_submitted = false;
        let EndedBatch { mut batch, outcome } = ended;
        let summary = &mut self.summary;
        match outcome? {
            TransactionOutcome::Committed => {
                summary.count(&batch);
                self.spent = Some(batch);
                Ok(())
            }
            TransactionOutcome::Rejected(index, error) => {
                summary.aborted += 1;
                self.replace_rejected(&mut batch, index, error)?;
                self.submit(batch, true)
            }
            TransactionOutcome::Split => {
                summary.aborted += 1;
                self.submit(batch, true)
            }
            TransactionOutcome::Aborted => {
                summary.aborted += 1;
                self.source.rewind(&batch.records, self.config.commit_timeout)
            }
            TransactionOutcome::Unknown => {
                summary.unknown += 1;
                self.source.rewind(&batch.records, self.config.commit_timeout)
            }
        }
    }

    /// Replaces what was produced for a record and rejected: by a dead letter, or by the same one without its payload.
    fn replace_rejected(
        &self,
        batch: &mut TransformedBatch,
        index: usize,
        error: Error,
    ) -> Result<(), Error> {
        let (message, produced) = (&batch.records[index].message, &mut batch.produced[index]);
        if !produced.is_dead {
            *produced = dead_letter(&self.config, message, Reason::Permanent, &error.to_string(), 1)?;
            return Ok(());
        }
        // A letter without payload fits; if the topic still rejects it, its configuration is wrong.
        let letter = &produced.outgoing[0];
        if error.kind() != ErrorKind::TooLarge || letter.payload.is_empty() {
            return Err(error);
        }
        tracing::error!(
            %error, delivery = ?message, bytes = letter.payload.len(),
            "dead letter exceeds its topic's limit; sending it without payload. Its record stays in the source topic until \
             retention deletes it"
        );
        produced.outgoing = vec![without_payload(letter)];
        Ok(())
    }
}

/// Returns the error for a task or a thread that ended without an answer.
fn panicked() -> Error {
    Error::new(
        ErrorKind::Internal,
        OPERATION,
        "a task or a thread of it has panicked; nothing more is committed",
    )
}

/// A part of a batch while it is transformed.
struct RunningPart {
    answered: Receiver<Result<TransformedBatch, Error>>,
    task: AbortHandle,
}

impl Drop for RunningPart {
    /// A run that has ended transforms nothing any more.
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How waiting for an answer went.
enum Waited<A> {
    Answered(A),
    /// Not answered yet.
    InVain,
    /// The worker stops: it is not awaited any more.
    Stopped,
    /// It will not be answered.
    Panicked,
}

impl<A> From<RecvTimeoutError> for Waited<A> {
    fn from(error: RecvTimeoutError) -> Self {
        match error {
            RecvTimeoutError::Timeout => Self::InVain,
            RecvTimeoutError::Disconnected => Self::Panicked,
        }
    }
}
