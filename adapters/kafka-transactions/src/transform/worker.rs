//! The thread of a transform: consumes batches, transforms and commits them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use onceward::store::Reason;
use onceward::{Error, ErrorKind};
use onceward_kafka::internal::{
    AuthFailures, ConsumerClientConfig, classify, is_authentication, try_describe_topics,
};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use crate::dead_letter::without_payload;
use crate::transform::assignment::TransformAssignment;
use crate::transform::batch::{BatchRecord, Produced, dead_letter, transform_batch};
use crate::transform::config::TransformConfig;
use crate::transform::function::Transform;
use crate::transform::offsets::{log_replaced, offsets_after};
use crate::transform::source::{SourceClient, drop_revoked, is_assigned, set_paused, to_batch_record};
use crate::transform::summary::TransformSummary;
use crate::transform::transactions::{TransactionOutcome, TransactionalProducer};

/// The timeout of a poll for the first record of a batch.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);
/// After this time a running transformation is waited for by polling the client, which keeps the membership.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// The timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The delay before the first retry of an aborted batch. It grows to fifty times as long.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// The interval between checks of topic ids, and their timeout.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

const OPERATION: &str = "run a transform";

pub(super) struct TransformWorker<T> {
    config: Arc<TransformConfig>,
    transform: Arc<T>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
    /// Records consumed while a batch was being transformed.
    ahead: VecDeque<BatchRecord>,
    /// The next offset of each assigned partition, by epoch and partition.
    next: HashMap<(u64, i32), i64>,
    /// When the topic ids were last checked.
    checked: Instant,
    /// The number of consecutive aborted transactions.
    failures: u32,
    auth_failures: AuthFailures,
    summary: TransformSummary,
}

impl<T: Transform> TransformWorker<T> {
    pub(super) fn new(config: TransformConfig, transform: T, runtime: Handle, stop: Arc<AtomicBool>) -> Self {
        let (config, transform) = (Arc::new(config), Arc::new(transform));
        Self {
            config,
            transform,
            runtime,
            stop,
            ahead: VecDeque::new(),
            next: HashMap::new(),
            checked: Instant::now(),
            failures: 0,
            auth_failures: AuthFailures::default(),
            summary: TransformSummary::default(),
        }
    }

    pub(super) fn run(mut self) -> Result<TransformSummary, Error> {
        let failed = |error| classify(OPERATION, error);
        let mut producer = self.open()?;
        let ConsumerClientConfig { client, from_end } = self.config.consumer()?;
        let source: SourceClient =
            client.create_with_context(TransformAssignment::new(from_end)).map_err(failed)?;
        let cluster = source.client().fetch_cluster_id(REQUEST_TIMEOUT).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                OPERATION,
                "the cluster does not report its id, which positions require",
            )
        })?;
        let names: Vec<_> = self.config.source.topics.names.iter().map(String::as_str).collect();
        source.subscribe(&names).map_err(failed)?;
        while !self.is_stopped() {
            let mut batch = self.consume_batch(&source, &cluster)?;
            if batch.is_empty() {
                continue;
            }
            let Some(mut produced) = self.transform(&source, &cluster, &batch)? else {
                // The worker stops: uncommitted records are redelivered.
                break;
            };
            drop_revoked(&source, &mut batch, &mut produced);
            producer = self.commit(&source, producer, &batch, produced)?;
        }
        Ok(self.summary)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn open(&self) -> Result<TransactionalProducer, Error> {
        TransactionalProducer::open(&self.config.producer(), self.config.commit_timeout)
    }

    /// Consumes the next batch; empty if there were no records.
    fn consume_batch(&mut self, source: &SourceClient, cluster: &str) -> Result<Vec<BatchRecord>, Error> {
        let mut batch: Vec<BatchRecord> = self.ahead.drain(..).collect();
        let mut bytes: usize = batch.iter().map(|own| own.message.size()).sum();
        let mut deadline = (!batch.is_empty()).then(|| Instant::now() + self.config.linger);
        while batch.len() < self.config.batch_records && bytes < self.config.batch_bytes {
            let wait = deadline
                .map_or(POLL_TIMEOUT, |at| at.saturating_duration_since(Instant::now()).min(POLL_TIMEOUT));
            match self.poll(source, cluster, wait)? {
                Some(own) => {
                    bytes += own.message.size();
                    batch.push(own);
                    deadline.get_or_insert_with(|| Instant::now() + self.config.linger);
                }
                None if deadline.is_none() => break,
                None => {}
            }
            if deadline.is_some_and(|at| Instant::now() >= at) || self.is_stopped() {
                break;
            }
        }
        batch.retain(|own| is_assigned(source, own));
        Ok(batch)
    }

    fn poll(
        &mut self,
        source: &SourceClient,
        cluster: &str,
        wait: Duration,
    ) -> Result<Option<BatchRecord>, Error> {
        let polled = source.poll(wait);
        if let Some(error) = source.context().take_error() {
            return Err(error);
        }
        self.check_topics(source)?;
        match polled {
            Some(Ok(record)) => {
                let Some(own) = to_batch_record(source, cluster, &record) else { return Ok(None) };
                let next = self.next.entry((own.epoch, own.partition)).or_insert(own.offset);
                if own.offset < *next {
                    return Err(log_replaced(&own.topic, Some(own.partition)));
                }
                *next = own.offset + 1;
                Ok(Some(own))
            }
            Some(Err(error)) => {
                let operation =
                    || format!("receive from topic {}", self.config.source.topics.names.join(", "));
                if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
                    return Err(classify(operation(), error));
                }
                let is_authentication = is_authentication(&error);
                let error = classify(operation(), error);
                match error.kind() {
                    ErrorKind::Denied if is_authentication && !self.auth_failures.record(Instant::now()) => {
                        tracing::warn!(%error, "authentication failed; retrying");
                        Ok(None)
                    }
                    ErrorKind::Denied | ErrorKind::Config => Err(error),
                    _ => {
                        tracing::warn!(%error, "client error; the client continues");
                        Ok(None)
                    }
                }
            }
            None => Ok(None),
        }
    }

    /// Checks the ids of the topics, if that is due.
    ///
    /// # Errors
    /// A topic was recreated: offsets of the old log must not be committed for the new one.
    fn check_topics(&mut self, source: &SourceClient) -> Result<(), Error> {
        if self.checked.elapsed() < CHECK_INTERVAL {
            return Ok(());
        }
        self.checked = Instant::now();
        let before = source.context().topic_ids();
        let names: Vec<_> = before.iter().map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        // Without an answer the next check asks again.
        let Ok(now) = try_describe_topics(source.client(), &names, CHECK_TIMEOUT) else { return Ok(()) };
        for ((name, before), now) in before.iter().zip(now) {
            if now.ok().and_then(|now| now.id).is_some_and(|now| now != *before) {
                return Err(log_replaced(name, None));
            }
        }
        Ok(())
    }

    /// Transforms a batch, and polls the client meanwhile if that takes long. Returns `None` if the worker stops.
    fn transform(
        &mut self,
        source: &SourceClient,
        cluster: &str,
        batch: &[BatchRecord],
    ) -> Result<Option<Vec<Produced>>, Error> {
        let (answer, answered) = mpsc::channel();
        let (config, transform, batch) =
            (Arc::clone(&self.config), Arc::clone(&self.transform), batch.to_vec());
        let running = self.runtime.spawn(async move {
            // The worker may have stopped.
            let _ = answer.send(transform_batch(&config, &*transform, &batch).await);
        });
        let panicked = || Error::new(ErrorKind::Internal, OPERATION, "the transforming task has ended");
        match answered.recv_timeout(IDLE_WAIT) {
            Ok(produced) => return produced.map(Some),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(panicked()),
        }
        let mut paused_at = None;
        let produced = loop {
            match answered.try_recv() {
                Ok(produced) => break produced?,
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => return Err(panicked()),
            }
            if self.is_stopped() {
                running.abort();
                return Ok(None);
            }
            // Once, and again after each assignment.
            let epoch = source.context().last_epoch();
            if paused_at != Some(epoch) && set_paused(source, true) {
                paused_at = Some(epoch);
            }
            if let Some(own) = self.poll(source, cluster, POLL_TIMEOUT)? {
                self.ahead.push_back(own);
            }
        };
        while !set_paused(source, false) {
            std::thread::sleep(RETRY_DELAY);
        }
        Ok(Some(produced))
    }

    /// Commits a batch, with retries. The outcome of an unanswered commit is read from the group's offsets.
    fn commit(
        &mut self,
        source: &SourceClient,
        mut producer: TransactionalProducer,
        batch: &[BatchRecord],
        mut produced: Vec<Produced>,
    ) -> Result<TransactionalProducer, Error> {
        while !batch.is_empty() {
            let offsets = offsets_after(source, batch)?;
            let group = source.group_metadata().ok_or_else(|| {
                Error::new(ErrorKind::Internal, OPERATION, "the client has no group; open another one")
            })?;
            let outgoing = produced.iter().map(|own| &own.outgoing[..]);
            match producer.run(outgoing, &offsets, &group)? {
                TransactionOutcome::Committed => {
                    self.failures = 0;
                    self.count(&produced);
                    break;
                }
                TransactionOutcome::Rejected(index, error) => {
                    self.summary.aborted += 1;
                    let message = &batch[index].message;
                    if produced[index].is_dead {
                        // A letter without payload fits; if the topic still rejects it, its configuration is wrong.
                        let letter = &produced[index].outgoing[0];
                        if error.kind() != ErrorKind::TooLarge || letter.payload.is_empty() {
                            return Err(error);
                        }
                        tracing::error!(
                            %error, delivery = ?message, bytes = letter.payload.len(),
                            "dead letter exceeds its topic's limit; sending it without payload. Its record stays in the source \
                             topic until retention deletes it"
                        );
                        produced[index].outgoing = vec![without_payload(letter)];
                        continue;
                    }
                    produced[index] =
                        dead_letter(&self.config, message, Reason::Permanent, &error.to_string(), 1)?;
                }
                TransactionOutcome::Split => self.summary.aborted += 1,
                TransactionOutcome::Aborted => {
                    self.summary.aborted += 1;
                    self.failures = self.failures.saturating_add(1);
                    std::thread::sleep(RETRY_DELAY * self.failures.min(50));
                    self.rewind(source, batch)?;
                    break;
                }
                TransactionOutcome::Unknown => {
                    self.summary.unknown += 1;
                    drop(producer);
                    producer = self.open()?;
                    self.rewind(source, batch)?;
                    break;
                }
            }
        }
        Ok(producer)
    }

    /// Seeks the group's committed offset in each partition of the batch that is still assigned.
    fn rewind(&mut self, source: &SourceClient, batch: &[BatchRecord]) -> Result<(), Error> {
        let failed = |error| classify("rewind after a transaction", error);
        let mut firsts = BTreeMap::new();
        for own in batch.iter().filter(|own| is_assigned(source, own)) {
            firsts.entry((Arc::clone(&own.topic), own.partition)).or_insert(own.offset);
        }
        if firsts.is_empty() {
            return Ok(());
        }
        self.ahead.retain(|own| !firsts.contains_key(&(Arc::clone(&own.topic), own.partition)));
        let mut list = TopicPartitionList::new();
        for (topic, partition) in firsts.keys() {
            list.add_partition(topic, *partition);
        }
        let until = Instant::now() + self.config.commit_timeout;
        let committed = loop {
            match source.committed_offsets(list.clone(), REQUEST_TIMEOUT) {
                Ok(committed) => break committed,
                Err(error) if Instant::now() >= until => return Err(failed(error)),
                Err(error) => tracing::warn!(%error, "reading the group's offsets failed; retrying"),
            }
        };
        for ((topic, partition), first) in firsts {
            let found = committed.find_partition(&topic, partition).map(|own| own.offset());
            let next = match found {
                Some(Offset::Offset(offset)) => offset,
                // The group has no offset: the batch starts where the group starts.
                _ => first,
            };
            match source.seek(&topic, partition, Offset::Offset(next), REQUEST_TIMEOUT) {
                Ok(()) => {
                    // The records from there are consumed again.
                    let epoch = source.context().epoch(&topic, partition);
                    self.next.retain(|(own, _), _| Some(*own) != epoch);
                }
                // Just revoked: the next owner starts there.
                Err(_) if source.context().epoch(&topic, partition).is_none() => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn count(&mut self, produced: &[Produced]) {
        let summary = &mut self.summary;
        summary.transactions += 1;
        summary.records += produced.len() as u64;
        for own in produced {
            let count = if own.is_dead { &mut summary.dead_lettered } else { &mut summary.produced };
            *count += own.outgoing.len() as u64;
        }
    }
}
