//! The broker suite against files: read once, and followed.
use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;
use onceward::adapter::CheckpointStore;
use onceward::testing::broker::BrokerHarness;
use onceward::{MemoryStore, Scope};
use onceward_file::{FileConfig, FileConsumer};

/// A file in a directory of its own.
struct FileHarness {
    directory: tempfile::TempDir,
    checkpoints: Arc<dyn CheckpointStore>,
    follow: bool,
}

impl FileHarness {
    fn new(follow: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("orders"), "").unwrap();
        Self { directory, checkpoints: Arc::new(MemoryStore::new()), follow }
    }
}

#[async_trait]
impl BrokerHarness for FileHarness {
    type Consumer = FileConsumer;

    async fn publish(&self, payloads: &[String]) {
        let path = self.directory.path().join("orders");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all((payloads.join("\n") + "\n").as_bytes()).unwrap();
    }

    async fn open(&self) -> FileConsumer {
        let mut config = FileConfig::new(self.directory.path().join("orders"));
        config.follow = self.follow;
        let scope = Scope::parse("conformance").unwrap();
        FileConsumer::open(config, scope, Arc::clone(&self.checkpoints)).await.unwrap()
    }
}

mod read_once {
    use super::FileHarness;

    onceward::broker_conformance!(FileHarness::new(false));
}

mod followed {
    use super::FileHarness;

    onceward::broker_conformance!(FileHarness::new(true));
}
