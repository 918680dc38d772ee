//! Helpers of this crate's tests: a checkpoint store in memory, and receiving with a limit.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use onceward::adapter::{Checkpoint, CheckpointStore, Consumer, Delivery, Settled, Settlement, Tag};
use onceward::{Error, ErrorKind, Scope};
use onceward_file::{FileConfig, FileConsumer};

/// Longer than anything here takes; a test that would hang fails instead.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Keeps checkpoints in memory, counts saves and fails on request.
#[derive(Default)]
pub struct Checkpoints {
    kept: Mutex<HashMap<(Scope, String), Checkpoint>>,
    pub saves: AtomicUsize,
    pub failing: AtomicBool,
    /// What it fails with, if not with `Unavailable`.
    pub kind: Mutex<Option<ErrorKind>>,
}

impl Checkpoints {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The checkpoint of the only source.
    pub fn only(&self) -> Checkpoint {
        let kept = self.kept.lock().unwrap();
        assert_eq!(kept.len(), 1);
        kept.values().next().unwrap().clone()
    }

    pub fn offset(&self) -> u64 {
        self.only().offset
    }
}

#[async_trait]
impl CheckpointStore for Checkpoints {
    async fn load_checkpoint(&self, scope: &Scope, source: &str) -> Result<Option<Checkpoint>, Error> {
        Ok(self.kept.lock().unwrap().get(&(scope.clone(), source.to_owned())).cloned())
    }

    async fn save_checkpoint(
        &self,
        scope: &Scope,
        source: &str,
        checkpoint: &Checkpoint,
    ) -> Result<(), Error> {
        if self.failing.load(Ordering::SeqCst) {
            let kind = self.kind.lock().unwrap().unwrap_or(ErrorKind::Unavailable);
            return Err(Error::new(kind, "save a checkpoint", "the test says so"));
        }
        self.saves.fetch_add(1, Ordering::SeqCst);
        self.kept.lock().unwrap().insert((scope.clone(), source.to_owned()), checkpoint.clone());
        Ok(())
    }
}

pub fn scope() -> Scope {
    Scope::parse("test").unwrap()
}

/// A directory with the file `name` that holds `text`.
pub fn file(text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.ndjson");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

pub fn append(path: &Path, text: impl AsRef<[u8]>) {
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(text.as_ref()).unwrap();
}

pub async fn open(path: &Path, checkpoints: &Arc<Checkpoints>) -> FileConsumer {
    open_with(FileConfig::new(path), checkpoints).await
}

pub async fn follow(path: &Path, checkpoints: &Arc<Checkpoints>) -> FileConsumer {
    let mut config = FileConfig::new(path);
    config.follow = true;
    open_with(config, checkpoints).await
}

pub async fn open_with(config: FileConfig, checkpoints: &Arc<Checkpoints>) -> FileConsumer {
    FileConsumer::open(config, scope(), Arc::clone(checkpoints) as Arc<dyn CheckpointStore>).await.unwrap()
}

/// Receives until there are `count` deliveries, and exactly those.
pub async fn receive(consumer: &mut FileConsumer, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let batch = tokio::time::timeout(LIMIT, consumer.receive()).await.expect("nothing comes").unwrap();
        let batch = batch.expect("the source ended too early");
        assert!(!batch.is_empty(), "a batch is never empty");
        deliveries.extend(batch);
    }
    assert_eq!(deliveries.len(), count, "{:?}", texts(&deliveries));
    deliveries
}

pub fn texts(deliveries: &[Delivery]) -> Vec<String> {
    let text = |delivery: &Delivery| String::from_utf8_lossy(delivery.message.payload()).into_owned();
    deliveries.iter().map(text).collect()
}

/// The source is at its end.
pub async fn end(consumer: &mut FileConsumer) {
    let last = tokio::time::timeout(LIMIT, consumer.receive()).await.expect("does not end").unwrap();
    assert!(last.is_none(), "{:?}", last.map(|last| texts(&last)));
}

/// Receives until the reader has reached the end of the file; nothing may arrive meanwhile.
pub async fn until_idle(consumer: &mut FileConsumer) {
    let wait = async {
        while consumer.is_idle().await != Some(true) {
            let received = tokio::time::timeout(Duration::from_millis(2), consumer.receive()).await;
            assert!(
                received.is_err(),
                "{:?}",
                received.unwrap().map(|batch| batch.map(|batch| texts(&batch)))
            );
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("never idle");
}

/// Settles all of `deliveries` in one call.
pub async fn settle(consumer: &FileConsumer, deliveries: Vec<Delivery>, settlement: Settlement) {
    let items: Vec<(Tag, Settlement)> =
        deliveries.iter().map(|delivery| (delivery.tag, settlement)).collect();
    for result in consumer.acker().settle(&items).await {
        assert_eq!(result.unwrap(), Settled::Done);
    }
}

pub async fn ack(consumer: &FileConsumer, deliveries: Vec<Delivery>) {
    settle(consumer, deliveries, Settlement::Ack).await;
}

/// Opens the file, receives and acks `expected`, and closes at the end of the file.
pub async fn run_to_end(path: &Path, checkpoints: &Arc<Checkpoints>, expected: &[&str]) {
    let mut consumer = open(path, checkpoints).await;
    let deliveries = receive(&mut consumer, expected.len()).await;
    assert_eq!(texts(&deliveries), expected);
    ack(&consumer, deliveries).await;
    end(&mut consumer).await;
    consumer.close().await.unwrap();
}
