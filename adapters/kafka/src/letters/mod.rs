//! Reads a topic of dead letters once, without a consumer group: [`KafkaLetters`].

mod partition;
mod reader;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use onceward::adapter::{
    Acker, Capabilities, Checkpoint, CheckpointStore, Consumer, Delivery, Settled, Settlement, Tag,
};
use onceward::{Error, OwnHeaders, Scope};
use tokio::task::JoinHandle;

use crate::client::blocking::run_blocking;
use crate::connection::KafkaConnection;
use partition::LetterPartition;
use reader::{LetterReader, ReadBatch};

/// Delivers the records that a topic holds when it is opened, each once; for tools that look through dead letters.
///
/// No consumer group is joined, so nothing waits for a rebalance, and any number of readers work at the same time. For each
/// partition the offset before which every record is settled is kept in a [`CheckpointStore`], and the next reader starts there.
pub struct KafkaLetters {
    reader: Arc<LetterReader>,
    progress: Arc<LetterProgress>,
    /// The read in flight: a dropped call must not lose its records.
    reading: Option<JoinHandle<Result<ReadBatch, Error>>>,
}

impl KafkaLetters {
    /// Connects, and looks up where each partition of `topic` starts and ends. `group` names the client; it is not joined.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if a value is invalid or the topic does not exist, `Denied` if access is
    /// denied, `Unavailable` or `Timeout` if the cluster or the checkpoint store does not answer.
    pub async fn open(
        connection: &KafkaConnection,
        topic: &str,
        group: &str,
        own_headers: OwnHeaders,
        scope: Scope,
        checkpoints: Arc<dyn CheckpointStore>,
    ) -> Result<Self, Error> {
        connection.check()?;
        let client = reader::client_config(connection, group)?;
        let name = topic.to_owned();
        let reader = run_blocking(move || LetterReader::open(&client, &name, own_headers)).await??;
        let mut partitions = BTreeMap::new();
        for (number, edges) in reader.edges() {
            let kept = checkpoints.load_checkpoint(&scope, &checkpoint_name(topic, number)).await?;
            let kept = kept.filter(|kept| kept.incarnation == reader.incarnation());
            // An offset beyond the end is of a log that has been truncated.
            let kept = kept.map(|kept| kept.offset).filter(|offset| *offset <= edges.end);
            let start = kept.unwrap_or_default().max(edges.start);
            partitions.insert(number, LetterPartition::new(start, edges.end));
        }
        let starts: Vec<_> = partitions.iter().map(|(number, own)| (*number, own.start())).collect();
        let reader = run_blocking(move || reader.assign(&starts)).await??;
        let progress = LetterProgress {
            partitions: Mutex::new(partitions),
            saving: tokio::sync::Mutex::default(),
            incarnation: reader.incarnation().to_owned(),
            topic: topic.to_owned(),
            scope,
            checkpoints,
        };
        Ok(Self { reader: Arc::new(reader), progress: Arc::new(progress), reading: None })
    }
}

fn checkpoint_name(topic: &str, partition: i32) -> String {
    format!("kafka dead letters {topic}/{partition}")
}

#[async_trait]
impl Consumer for KafkaLetters {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.finite = true;
        capabilities.ordered = true;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::clone(&self.progress) as Arc<dyn Acker>
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            if self.progress.lock().values().all(LetterPartition::is_read) {
                return Ok(None);
            }
            let reading = self.reading.get_or_insert_with(|| {
                let reader = Arc::clone(&self.reader);
                tokio::spawn(async move { run_blocking(move || reader.read()).await? })
            });
            let joined = reading.await;
            self.reading = None;
            let batch = joined.map_err(|error| {
                Error::new(onceward::ErrorKind::Internal, "read dead letters", "the task that reads panicked")
                    .with_source(error)
            })??;
            let deliveries = self.progress.deliver(batch);
            if !deliveries.is_empty() {
                return Ok(Some(deliveries));
            }
        }
    }

    async fn close(&mut self) -> Result<(), Error> {
        self.progress.save().await
    }
}

impl fmt::Debug for KafkaLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaLetters").field("topic", &self.progress.topic).finish_non_exhaustive()
    }
}

/// How far each partition has been read and settled; the acker.
struct LetterProgress {
    partitions: Mutex<BTreeMap<i32, LetterPartition>>,
    /// Locked while checkpoints are saved, so that they are saved in order.
    saving: tokio::sync::Mutex<()>,
    incarnation: String,
    topic: String,
    scope: Scope,
    checkpoints: Arc<dyn CheckpointStore>,
}

impl LetterProgress {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, LetterPartition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those records of `batch` that were there when the topic was opened.
    fn deliver(&self, batch: ReadBatch) -> Vec<Delivery> {
        let mut partitions = self.lock();
        let mut deliveries = Vec::with_capacity(batch.records.len());
        for (number, offset, message) in batch.records {
            let Some(own) = partitions.get_mut(&number) else { continue };
            if own.deliver(offset) {
                let tag = Tag { epoch: u64::from(number.unsigned_abs()), number: offset };
                deliveries.push(Delivery { message, tag });
            }
        }
        for number in batch.ended {
            if let Some(own) = partitions.get_mut(&number) {
                own.end();
            }
        }
        deliveries
    }

    /// Saves the offsets that have moved.
    async fn save(&self) -> Result<(), Error> {
        let _saving = self.saving.lock().await;
        let moved: Vec<_> =
            self.lock().iter().filter_map(|(number, own)| Some((*number, own.unsaved()?))).collect();
        for (number, offset) in moved {
            let checkpoint =
                Checkpoint { incarnation: self.incarnation.clone(), offset, evidence: String::new() };
            let name = checkpoint_name(&self.topic, number);
            self.checkpoints.save_checkpoint(&self.scope, &name, &checkpoint).await?;
            if let Some(own) = self.lock().get_mut(&number) {
                own.saved(offset);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Acker for LetterProgress {
    /// Only acknowledged records move the offset; the next reader reads the others again.
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        {
            let mut partitions = self.lock();
            for (tag, settlement) in batch {
                let number = i32::try_from(tag.epoch).unwrap_or(i32::MAX);
                if let (Settlement::Ack, Some(own)) = (settlement, partitions.get_mut(&number)) {
                    own.settle(tag.number);
                }
            }
        }
        let saved = self.save().await;
        // An error has no clone; whichever item has it, the call has failed.
        let mut failed = saved.err();
        batch.iter().map(|_| failed.take().map_or(Ok(Settled::Done), Err)).collect()
    }
}
