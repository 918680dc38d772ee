//! The thread that runs a transform's transactions, one after another: [`ProducingThread`].

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use onceward::{Error, ErrorKind};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;

use crate::transform::batch::TransformedBatch;
use crate::transform::config::TransformConfig;
use crate::transform::running_transaction::RunningTransaction;
use crate::transform::transactions::{TransactionOutcome, TransactionalProducer};

/// The delay after the first of consecutive aborted transactions. It grows to fifty times as long.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A batch for one transaction.
pub(super) struct SubmittedBatch {
    pub(super) batch: TransformedBatch,
    /// It was submitted before, and rejected or split.
    pub(super) is_repeated: bool,
    pub(super) offsets: TopicPartitionList,
    pub(super) group: ConsumerGroupMetadata,
}

/// A batch whose transaction has ended.
pub(super) struct EndedBatch {
    pub(super) batch: TransformedBatch,
    pub(super) outcome: Result<TransactionOutcome, Error>,
}

/// The thread that runs the transactions.
pub(super) struct ProducingThread {
    submit: Option<Sender<SubmittedBatch>>,
    ended: Receiver<EndedBatch>,
    open: Arc<RunningTransaction>,
    thread: Option<JoinHandle<()>>,
}

impl ProducingThread {
    /// Connects, and ends the transactions that another producer with the same id has left open. Blocks up to a minute.
    ///
    /// # Errors
    /// The cluster does not answer, or denies access; or the thread cannot be started.
    pub(super) fn start(config: &Arc<TransformConfig>, open: Arc<RunningTransaction>) -> Result<Self, Error> {
        let producer = Some(connect(config)?);
        let (config, failures) = (Arc::clone(config), 0);
        let producing = Producing { config, producer, open: Arc::clone(&open), failures };
        let (submit, submitted) = mpsc::channel();
        let (answer, ended) = mpsc::channel();
        let spawned = std::thread::Builder::new()
            .name("onceward-commit".into())
            .spawn(move || producing.serve(submitted, &answer));
        let thread = spawned.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "start a transform", "starting a thread failed")
                .with_source(error)
        })?;
        Ok(Self { submit: Some(submit), ended, open, thread: Some(thread) })
    }

    /// Submits a batch.
    ///
    /// # Errors
    /// The thread has panicked.
    pub(super) fn submit(&self, own: SubmittedBatch) -> Result<(), Error> {
        self.open.open();
        self.submit.as_ref().and_then(|submit| submit.send(own).ok()).ok_or_else(|| {
            self.open.close();
            Error::new(ErrorKind::Internal, "run a transform", "the thread of its transactions has ended")
        })
    }

    /// Returns the next batch whose transaction has ended.
    ///
    /// # Errors
    /// No transaction ends within `limit`, or the thread has panicked.
    pub(super) fn ended(&self, limit: Duration) -> Result<EndedBatch, RecvTimeoutError> {
        self.ended.recv_timeout(limit)
    }
}

impl Drop for ProducingThread {
    /// Waits for a running transaction.
    fn drop(&mut self) {
        drop(self.submit.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread of a transform's transactions panicked");
        }
    }
}

fn connect(config: &TransformConfig) -> Result<TransactionalProducer, Error> {
    TransactionalProducer::open(&config.producer(), config.commit_timeout)
}

/// The state of the thread.
struct Producing {
    config: Arc<TransformConfig>,
    /// `None` while it is recreated.
    producer: Option<TransactionalProducer>,
    open: Arc<RunningTransaction>,
    /// The number of consecutive aborted transactions.
    failures: u32,
}

impl Drop for Producing {
    /// A thread that panics has no transaction open, as far as this process is concerned.
    fn drop(&mut self) {
        self.open.close();
    }
}

impl Producing {
    fn serve(mut self, submitted: Receiver<SubmittedBatch>, answer: &Sender<EndedBatch>) {
        for own in submitted {
            let outcome = self.run(&own);
            self.open.close();
            self.wait_after(&outcome);
            if answer.send(EndedBatch { batch: own.batch, outcome }).is_err() {
                return;
            }
        }
    }

    /// Runs a transaction. If its outcome is unknown, a new producer decides it: the group's offsets show the outcome then.
    fn run(&mut self, own: &SubmittedBatch) -> Result<TransactionOutcome, Error> {
        let producer = match &mut self.producer {
            Some(producer) => producer,
            None => self.producer.insert(connect(&self.config)?),
        };
        let outcome = producer.run(&own.batch.produced, own.is_repeated, &own.offsets, &own.group)?;
        if matches!(outcome, TransactionOutcome::Unknown) {
            // The old one must be gone first.
            self.producer = None;
            self.producer = Some(connect(&self.config)?);
        }
        Ok(outcome)
    }

    /// Waits before the records of an aborted transaction are retried.
    fn wait_after(&mut self, outcome: &Result<TransactionOutcome, Error>) {
        match outcome {
            Ok(TransactionOutcome::Committed) => self.failures = 0,
            Ok(TransactionOutcome::Aborted) => {
                self.failures = self.failures.saturating_add(1);
                std::thread::sleep(RETRY_DELAY * self.failures.min(50));
            }
            _ => {}
        }
    }
}
