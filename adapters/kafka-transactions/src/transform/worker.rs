//! The thread of a transform: takes batches, has them transformed, and commits them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use onceward::store::Reason;
use onceward::{Error, ErrorKind, OwnHeaders};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::batch::{self, Made, Taken};
use super::config::TransformConfig;
use super::members::Members;
use super::offsets::{another_log, offsets};
use super::transactions::{End, Transactions};
use super::{Transform, TransformSummary};
use crate::dead_letter::stub;
use onceward_kafka::internal as native;
use onceward_kafka::internal::Refused;
use onceward_kafka::internal::Settled;
use onceward_kafka::internal::error;
use onceward_kafka::internal::to_message;

/// How long a poll waits for a first record.
const POLL: Duration = Duration::from_millis(50);
/// A short run is waited for; during a longer one the client is polled, so that the membership is kept.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the broker may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
/// How long an aborted batch waits before it runs again, the first time; up to fifty times as long later.
const BREATH: Duration = Duration::from_millis(100);

/// How often the topics' ids are looked at, and how long that may take.
const LOOK: Duration = Duration::from_secs(2);
const QUICK: Duration = Duration::from_secs(1);

const OPERATION: &str = "run a transform";

pub(super) struct Worker<T> {
    config: Arc<TransformConfig>,
    transform: Arc<T>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
    /// Came while a batch was being transformed.
    ahead: VecDeque<Taken>,
    /// Behind the last record of each assigned partition.
    next: HashMap<(u64, i32), i64>,
    /// When the topics' ids were looked at.
    looked: Instant,
    /// Transactions in a row that came to nothing.
    failures: u32,
    refused: Refused,
    summary: TransformSummary,
}

type Source = BaseConsumer<Members>;

impl<T: Transform> Worker<T> {
    pub(super) fn new(config: TransformConfig, transform: T, runtime: Handle, stop: Arc<AtomicBool>) -> Self {
        let (config, transform) = (Arc::new(config), Arc::new(transform));
        Self {
            config,
            transform,
            runtime,
            stop,
            ahead: VecDeque::new(),
            next: HashMap::new(),
            looked: Instant::now(),
            failures: 0,
            refused: Refused::default(),
            summary: TransformSummary::default(),
        }
    }

    pub(super) fn run(mut self) -> Result<TransformSummary, Error> {
        let failed = |error| error::kafka(OPERATION, error);
        let mut transactions = self.open()?;
        let Settled { client, from_end } = self.config.consumer()?;
        let source: Source = client.create_with_context(Members::new(from_end)).map_err(failed)?;
        let cluster = source.client().fetch_cluster_id(ANSWER).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                OPERATION,
                "the cluster does not tell its id; positions need it",
            )
        })?;
        let names: Vec<_> = self.config.source.topics.names.iter().map(String::as_str).collect();
        source.subscribe(&names).map_err(failed)?;
        while !self.is_stopped() {
            let mut taken = self.gather(&source, &cluster)?;
            if taken.is_empty() {
                continue;
            }
            let Some(mut made) = self.transform(&source, &cluster, &taken)? else {
                // Told to stop: what is not committed comes again.
                break;
            };
            keep_ours(&source, &mut taken, &mut made);
            transactions = self.commit(&source, transactions, &taken, made)?;
        }
        Ok(self.summary)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn open(&self) -> Result<Transactions, Error> {
        Transactions::open(&self.config.producer(), self.config.commit_timeout)
    }

    /// The next batch; none if nothing came.
    fn gather(&mut self, source: &Source, cluster: &str) -> Result<Vec<Taken>, Error> {
        let mut taken: Vec<Taken> = self.ahead.drain(..).collect();
        let mut bytes: usize = taken.iter().map(|own| own.message.size()).sum();
        let mut deadline = (!taken.is_empty()).then(|| Instant::now() + self.config.linger);
        while taken.len() < self.config.batch_records && bytes < self.config.batch_bytes {
            let wait = deadline.map_or(POLL, |at| at.saturating_duration_since(Instant::now()).min(POLL));
            match self.poll(source, cluster, wait)? {
                Some(own) => {
                    bytes += own.message.size();
                    taken.push(own);
                    deadline.get_or_insert_with(|| Instant::now() + self.config.linger);
                }
                None if deadline.is_none() => break,
                None => {}
            }
            if deadline.is_some_and(|at| Instant::now() >= at) || self.is_stopped() {
                break;
            }
        }
        taken.retain(|own| is_ours(source, own));
        Ok(taken)
    }

    fn poll(&mut self, source: &Source, cluster: &str, wait: Duration) -> Result<Option<Taken>, Error> {
        let polled = source.poll(wait);
        if let Some(error) = source.context().take_error() {
            return Err(error);
        }
        self.look(source)?;
        match polled {
            Some(Ok(record)) => {
                let Some(own) = take(source, cluster, &record) else { return Ok(None) };
                let next = self.next.entry((own.epoch, own.partition)).or_insert(own.offset);
                if own.offset < *next {
                    return Err(another_log(&own.topic, own.partition));
                }
                *next = own.offset + 1;
                Ok(Some(own))
            }
            Some(Err(error)) => {
                let operation =
                    || format!("receive from topic {}", self.config.source.topics.names.join(", "));
                if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
                    return Err(error::kafka(operation(), error));
                }
                let is_login = error::is_login(&error);
                let error = error::kafka(operation(), error);
                match error.kind() {
                    ErrorKind::Denied if is_login && !self.refused.goes_on(Instant::now()) => {
                        tracing::warn!(%error, "it is tried again");
                        Ok(None)
                    }
                    ErrorKind::Denied | ErrorKind::Config => Err(error),
                    _ => {
                        tracing::warn!(%error, "the client reports an error and goes on");
                        Ok(None)
                    }
                }
            }
            None => Ok(None),
        }
    }

    /// Looks once in a while whether the topics are those that were assigned.
    ///
    /// # Errors
    /// One was recreated: offsets of the old log must not be committed for the new one.
    fn look(&mut self, source: &Source) -> Result<(), Error> {
        if self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        let before = source.context().ids();
        let names: Vec<_> = before.iter().map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        // Who does not answer is asked again.
        let Ok(now) = native::describe_each(source.client(), &names, QUICK) else { return Ok(()) };
        for ((name, before), now) in before.iter().zip(now) {
            if now.ok().and_then(|now| now.id).is_some_and(|now| now != *before) {
                return Err(another_log(name, -1));
            }
        }
        Ok(())
    }

    /// Has the batch transformed; the client is polled meanwhile if that takes long. `None`: told to stop.
    fn transform(
        &mut self,
        source: &Source,
        cluster: &str,
        taken: &[Taken],
    ) -> Result<Option<Vec<Made>>, Error> {
        let (answer, answered) = mpsc::channel();
        let (config, transform, batch) =
            (Arc::clone(&self.config), Arc::clone(&self.transform), taken.to_vec());
        let running = self.runtime.spawn(async move {
            // Whoever asked may be gone.
            let _ = answer.send(batch::transform(&config, &*transform, &batch).await);
        });
        let panicked = || Error::new(ErrorKind::Internal, OPERATION, "the task that transforms has ended");
        match answered.recv_timeout(PATIENCE) {
            Ok(made) => return made.map(Some),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(panicked()),
        }
        let mut paused_at = None;
        let made = loop {
            match answered.try_recv() {
                Ok(made) => break made?,
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => return Err(panicked()),
            }
            if self.is_stopped() {
                running.abort();
                return Ok(None);
            }
            // Once, and again after each new assignment.
            let epoch = source.context().last_epoch();
            if paused_at != Some(epoch) && toggle(source, true) {
                paused_at = Some(epoch);
            }
            if let Some(own) = self.poll(source, cluster, POLL)? {
                self.ahead.push_back(own);
            }
        };
        while !toggle(source, false) {
            std::thread::sleep(BREATH);
        }
        Ok(Some(made))
    }

    /// Commits the batch, however often it takes. What became of a commit without an answer is read from the group's offsets.
    fn commit(
        &mut self,
        source: &Source,
        mut transactions: Transactions,
        taken: &[Taken],
        mut made: Vec<Made>,
    ) -> Result<Transactions, Error> {
        while !taken.is_empty() {
            let offsets = offsets(source, taken)?;
            let group = source.group_metadata().ok_or_else(|| {
                Error::new(ErrorKind::Internal, OPERATION, "the client has no group; open another one")
            })?;
            let outgoing = made.iter().map(|made| &made.outgoing[..]);
            match transactions.run(outgoing, &offsets, &group)? {
                End::Committed => {
                    self.failures = 0;
                    self.count(&made);
                    break;
                }
                End::Refused(index, error) => {
                    self.summary.aborted += 1;
                    let message = &taken[index].message;
                    if made[index].is_dead {
                        // What fits in any case is sent once; what is refused then is the topic's affair.
                        let letter = &made[index].outgoing[0];
                        if error.kind() != ErrorKind::TooLarge || letter.payload.is_empty() {
                            return Err(error);
                        }
                        tracing::error!(
                            %error, delivery = ?message, bytes = letter.payload.len(),
                            "a dead letter does not fit into its topic: it is sent without payload; its record stays where it \
                             stands until the retention of its topic removes it"
                        );
                        made[index].outgoing = vec![stub(letter)];
                        continue;
                    }
                    made[index] =
                        batch::dead(&self.config, message, Reason::Permanent, &error.to_string(), 1)?;
                }
                End::Parted => self.summary.aborted += 1,
                End::Aborted => {
                    self.summary.aborted += 1;
                    self.failures = self.failures.saturating_add(1);
                    std::thread::sleep(BREATH * self.failures.min(50));
                    self.rewind(source, taken)?;
                    break;
                }
                End::Unknown => {
                    self.summary.unknown += 1;
                    drop(transactions);
                    transactions = self.open()?;
                    self.rewind(source, taken)?;
                    break;
                }
            }
        }
        Ok(transactions)
    }

    /// Goes back to what the group has committed, for each partition of the batch that is still ours.
    fn rewind(&mut self, source: &Source, taken: &[Taken]) -> Result<(), Error> {
        let failed = |error| error::kafka("rewind after a transaction", error);
        let mut firsts = BTreeMap::new();
        for own in taken.iter().filter(|own| is_ours(source, own)) {
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
            match source.committed_offsets(list.clone(), ANSWER) {
                Ok(committed) => break committed,
                Err(error) if Instant::now() >= until => return Err(failed(error)),
                Err(error) => tracing::warn!(%error, "the group's offsets cannot be read yet"),
            }
        };
        for ((topic, partition), first) in firsts {
            let found = committed.find_partition(&topic, partition).map(|own| own.offset());
            let next = match found {
                Some(Offset::Offset(offset)) => offset,
                // Nothing was ever committed: the batch began where the group begins.
                _ => first,
            };
            match source.seek(&topic, partition, Offset::Offset(next), ANSWER) {
                Ok(()) => {
                    // It is read again from there.
                    let epoch = source.context().epoch(&topic, partition);
                    self.next.retain(|(own, _), _| Some(*own) != epoch);
                }
                // Taken away a moment ago: its next owner starts there.
                Err(_) if source.context().epoch(&topic, partition).is_none() => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn count(&mut self, made: &[Made]) {
        let summary = &mut self.summary;
        summary.transactions += 1;
        summary.records += made.len() as u64;
        for made in made {
            let count = if made.is_dead { &mut summary.dead_lettered } else { &mut summary.produced };
            *count += made.outgoing.len() as u64;
        }
    }
}

fn take(source: &Source, cluster: &str, record: &BorrowedMessage<'_>) -> Option<Taken> {
    let (topic, partition) = (record.topic(), record.partition());
    let epoch = source.context().epoch(topic, partition)?;
    let incarnation = source.context().stamp(topic, partition).incarnation(cluster, topic).into();
    let topic: Arc<str> = topic.into();
    let (message, _) = to_message(record, &topic, &incarnation, None, &OwnHeaders::default());
    Some(Taken { topic, partition, offset: record.offset(), epoch, message })
}

fn is_ours(source: &Source, own: &Taken) -> bool {
    source.context().epoch(&own.topic, own.partition) == Some(own.epoch)
}

/// Leaves out what went to another member while it was transformed.
fn keep_ours(source: &Source, taken: &mut Vec<Taken>, made: &mut Vec<Made>) {
    let ours: Vec<_> = taken.iter().map(|own| is_ours(source, own)).collect();
    let (mut of_taken, mut of_made) = (ours.iter().copied(), ours.iter().copied());
    taken.retain(|_| of_taken.next().unwrap_or_default());
    made.retain(|_| of_made.next().unwrap_or_default());
}

/// Pauses or resumes all partitions; false if the client refuses.
fn toggle(source: &Source, pause: bool) -> bool {
    let toggled = source.assignment().and_then(|assignment| match pause {
        true => source.pause(&assignment),
        false => source.resume(&assignment),
    });
    if let Err(error) = &toggled {
        tracing::warn!(%error, pause, "partitions cannot be paused or resumed; it is tried again");
    }
    toggled.is_ok()
}
