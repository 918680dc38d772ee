//! Dead letters in files: durable lines that can be read back, whatever else appends.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use onceward::{Consumer, Defect, ErrorKind, Outgoing, Publisher};
use onceward_file::{FileConfig, FilePublisher, Format};
use support::{Checkpoints, LIMIT, ack, end, open_with, receive};

fn letter(path: &Path, id: &str, payload: impl Into<Bytes>) -> Outgoing {
    Outgoing {
        destination: path.to_str().unwrap().to_owned(),
        id: id.to_owned(),
        order_key: Some(Bytes::from_static(b"\xfe")),
        headers: vec![("reason".into(), "permanent".into()), ("raw".into(), Bytes::from_static(b"\xff"))],
        payload: payload.into(),
        ..Outgoing::default()
    }
}

async fn publish(publisher: &FilePublisher, batch: &[Outgoing]) {
    let results = publisher.publish(batch).await;
    assert_eq!(results.len(), batch.len());
    results.into_iter().for_each(|result| result.unwrap());
}

fn envelope_config(path: &Path) -> FileConfig {
    let mut config = FileConfig::new(path);
    config.format = Format::Envelope;
    config
}

#[tokio::test]
async fn dead_letters_can_be_read_back_as_a_source() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.dlq");
    let payloads = [&b"{\"n\": 1}"[..], b"text\nwith lines", b"\0\xff", b"", b"\"quoted\""];
    let batch: Vec<_> = payloads.iter().map(|payload| letter(&path, "7", *payload)).collect();
    publish(&FilePublisher::new(), &batch).await;

    let mut consumer = open_with(envelope_config(&path), &Checkpoints::new()).await;
    let deliveries = receive(&mut consumer, payloads.len()).await;
    for (delivery, letter) in deliveries.iter().zip(&batch) {
        let message = &delivery.message;
        assert_eq!(message.defect(), None);
        assert_eq!(message.payload(), &letter.payload);
        assert_eq!(message.id(), Some(letter.id.as_bytes()));
        assert_eq!(message.order_key(), letter.order_key.as_ref());
        let headers: Vec<_> =
            message.headers().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        assert_eq!(headers, letter.headers);
    }
    ack(&consumer, deliveries).await;
    end(&mut consumer).await;
}

#[tokio::test]
async fn a_line_that_a_crash_left_without_end_does_not_swallow_the_next_letter() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.dlq");
    std::fs::write(&path, "{\"id\":\"1\",\"pay").unwrap();
    let publisher = FilePublisher::new();
    publish(&publisher, &[letter(&path, "2", "x")]).await;
    publish(&publisher, &[letter(&path, "3", "y")]).await;
    assert!(!std::fs::read_to_string(&path).unwrap().contains("\n\n"), "repaired only where it was needed");

    let mut consumer = open_with(envelope_config(&path), &Checkpoints::new()).await;
    let deliveries = receive(&mut consumer, 3).await;
    assert!(matches!(deliveries[0].message.defect(), Some(Defect::Malformed { .. })));
    assert_eq!(deliveries[1].message.id(), Some(&b"2"[..]));
    assert_eq!(deliveries[2].message.id(), Some(&b"3"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_publishers_append_to_one_file_without_mixing_their_lines() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.dlq");
    let mut tasks = Vec::new();
    for name in ["a", "b"] {
        let path = path.clone();
        tasks.push(tokio::spawn(async move {
            let publisher = FilePublisher::new();
            for round in 0..40 {
                let ids = [0, 1, 2].map(|item| format!("{name}-{round}-{item}"));
                let batch: Vec<_> = ids.iter().map(|id| letter(&path, id, name.repeat(30_000))).collect();
                publish(&publisher, &batch).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut consumer = open_with(envelope_config(&path), &Checkpoints::new()).await;
    let mut ids = HashSet::new();
    while ids.len() < 240 {
        let batch = tokio::time::timeout(LIMIT, consumer.receive()).await.unwrap().unwrap().unwrap();
        for delivery in &batch {
            assert_eq!(delivery.message.defect(), None);
            assert!(ids.insert(delivery.message.id().unwrap().to_vec()), "a letter came twice");
        }
        ack(&consumer, batch).await;
    }
    end(&mut consumer).await;
}

#[tokio::test]
async fn a_batch_waits_for_the_writer_before_it_and_looks_at_the_end_only_then() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.dlq");
    std::fs::write(&path, "").unwrap();
    let other = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    other.lock().unwrap();
    let batch = [letter(&path, "1", "x")];
    let publisher = FilePublisher::new();
    let mut call = publisher.publish(&batch);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut call).await.is_err());
    // The writer before dies in the middle of its line.
    std::io::Write::write_all(&mut &other, b"{\"id\":\"0\"").unwrap();
    drop(other);
    tokio::time::timeout(LIMIT, call).await.unwrap().into_iter().for_each(|result| result.unwrap());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("{\"id\":\"0\"\n{\"id\":\"1\""), "{text}");
}

#[tokio::test]
async fn a_destination_that_cannot_be_written_fails_its_own_letters_only() {
    let directory = tempfile::tempdir().unwrap();
    let good = directory.path().join("good");
    let nowhere = directory.path().join("none/here");
    let batch = [
        letter(&good, "1", "x"),
        letter(&nowhere, "2", "x"),
        letter(directory.path(), "3", "x"),
        letter(Path::new(""), "4", "x"),
        letter(Path::new("/dev/null"), "5", "x"),
        letter(&good, "6", "x"),
    ];
    let results = FilePublisher::new().publish(&batch).await;
    let kinds: Vec<_> =
        results.iter().map(|result| result.as_ref().err().map(onceward::Error::kind)).collect();
    let config = Some(ErrorKind::Config);
    assert_eq!(kinds, [None, config, config, config, config, None]);
    assert_eq!(std::fs::read_to_string(&good).unwrap().lines().count(), 2);
}
