//! Standard input and pipes: read once, to their end, without an offset.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use onceward::adapter::{Consumer, Settlement};
use onceward_file::{FileConfig, FileConsumer};

use crate::support::{self, Checkpoints, ack, end, open, receive, settle, texts};

#[tokio::test]
async fn a_reader_is_delivered_to_its_end_and_keeps_no_offset() {
    let config = FileConfig::new("-");
    let mut consumer = FileConsumer::from_reader(config, &b"one\r\n\ntwo"[..]).unwrap();
    let deliveries = receive(&mut consumer, 2).await;
    assert_eq!(texts(&deliveries), ["one", "two"]);
    assert_eq!(deliveries[0].message.origin(), Some("-"));
    let position = deliveries[1].message.position().unwrap();
    assert_eq!((position.offset, position.incarnation.starts_with("stream-")), (6, true));
    ack(&consumer, deliveries).await;
    end(&mut consumer).await;
}

#[tokio::test]
async fn a_retried_line_is_kept_in_memory() {
    let mut consumer = FileConsumer::from_reader(FileConfig::new("-"), &b"one\ntwo\n"[..]).unwrap();
    let mut deliveries = receive(&mut consumer, 2).await;
    let two = deliveries.split_off(1);
    settle(&consumer, deliveries, Settlement::Retry { after: Duration::ZERO }).await;
    let again = receive(&mut consumer, 1).await;
    assert_eq!(texts(&again), ["one"]);
    ack(&consumer, again).await;
    ack(&consumer, two).await;
    end(&mut consumer).await;
}

/// Gives out one piece for each message of a channel, and blocks in between as a pipe does.
struct Pieces(std::sync::mpsc::Receiver<&'static [u8]>);

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let piece = self.0.recv().unwrap_or_default();
        into[..piece.len()].copy_from_slice(piece);
        Ok(piece.len())
    }
}

#[tokio::test]
async fn a_line_is_delivered_while_the_next_one_is_still_awaited() {
    let (sender, pieces) = std::sync::mpsc::channel();
    let mut consumer = FileConsumer::from_reader(FileConfig::new("-"), Pieces(pieces)).unwrap();
    sender.send(&b"one\nbegun"[..]).unwrap();
    let one = receive(&mut consumer, 1).await;
    assert_eq!(texts(&one), ["one"]);
    sender.send(&b" and ended\n"[..]).unwrap();
    let rest = receive(&mut consumer, 1).await;
    assert_eq!(texts(&rest), ["begun and ended"]);
    drop(sender);
    ack(&consumer, one).await;
    ack(&consumer, rest).await;
    end(&mut consumer).await;
}

/// Reports each read before it blocks.
struct ReportedPieces(Pieces, std::sync::mpsc::Sender<()>);

impl Read for ReportedPieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let _ = self.1.send(());
        self.0.read(into)
    }
}

/// A run asks a source that ends by itself whether it is idle, and ends if it is: lines that follow a pause would be lost.
#[tokio::test]
async fn a_stream_that_pauses_has_not_ended() {
    let (sender, pieces) = std::sync::mpsc::channel();
    let (reports, reads) = std::sync::mpsc::channel();
    let reader = ReportedPieces(Pieces(pieces), reports);
    let mut consumer = FileConsumer::from_reader(FileConfig::new("-"), reader).unwrap();
    sender.send(&b"one\n"[..]).unwrap();
    let one = receive(&mut consumer, 1).await;
    ack(&consumer, one).await;
    for _ in 0..2 {
        reads.recv_timeout(support::LIMIT).unwrap();
    }
    assert_eq!(consumer.is_idle().await, Some(false), "the second read waits for more");
    sender.send(&b"two\n"[..]).unwrap();
    let two = receive(&mut consumer, 1).await;
    assert_eq!(texts(&two), ["two"]);
    ack(&consumer, two).await;
    drop(sender);
    end(&mut consumer).await;
    assert_eq!(consumer.is_idle().await, Some(true));
}

#[tokio::test]
async fn a_named_pipe_is_read_like_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let checkpoints = Checkpoints::new();
    let mut consumer = open(&path, &checkpoints).await;
    let writer = std::thread::spawn({
        let path = path.clone();
        move || std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all(b"one\ntwo\n").unwrap()
    });
    let deliveries = receive(&mut consumer, 2).await;
    assert_eq!(texts(&deliveries), ["one", "two"]);
    ack(&consumer, deliveries).await;
    end(&mut consumer).await;
    writer.join().unwrap();
    assert_eq!(checkpoints.saves.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn a_pipe_that_nobody_writes_to_does_not_keep_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut consumer = open(&path, &Checkpoints::new()).await;
            let wait = tokio::time::timeout(Duration::from_millis(50), consumer.receive()).await;
            assert!(wait.is_err());
        });
        drop(runtime);
        done.send(()).unwrap();
    });
    ended.recv_timeout(support::LIMIT).expect("the runtime waits for the pipe");
    drop(Arc::new(directory));
}
