//! Dead letters in files: durable lines that can be read back, whatever else appends.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use onceward::adapter::Consumer;
use onceward::{ErrorKind, Outgoing, Publisher};
use onceward_file::{FileConfig, FilePublisher, Format};

use crate::support::{Checkpoints, LIMIT, ack, end, open_with, receive};

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
async fn a_new_file_is_its_owners_alone_and_none_is_made_through_a_link() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (file, link) = (directory.path().join("orders.dlq"), directory.path().join("link.dlq"));
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let publisher = FilePublisher::new();
    let refused = publisher.publish(&[letter(&link, "1", "x")]).await.remove(0).unwrap_err();
    assert!(refused.to_string().contains("symbolic link") && !file.exists(), "{refused}");

    publish(&publisher, &[letter(&file, "1", "x")]).await;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // It belongs to the user of this test, and the file is there.
    publish(&publisher, &[letter(&link, "2", "x")]).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
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
    let deliveries = receive(&mut consumer, 2).await;
    let ids: Vec<_> = deliveries.iter().map(|delivery| delivery.message.id().unwrap()).collect();
    assert_eq!(ids, [b"2", b"3"], "the half line is gone");
}

#[tokio::test]
async fn a_last_line_that_is_not_a_torn_letter_is_kept_and_ended() {
    for kept in ["a note of somebody", r#"{"id":"1","payload":"x"}"#] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orders.dlq");
        std::fs::write(&path, kept).unwrap();
        publish(&FilePublisher::new(), &[letter(&path, "2", "x")]).await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("{kept}\n{{")), "{text}");
    }
}

#[tokio::test]
async fn a_torn_line_that_is_longer_than_what_is_looked_at_is_removed_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.dlq");
    let torn =
        format!("{{\"id\":\"0\",\"payload\":\"x\"}}\n{{\"id\":\"1\",\"payload\":\"{}", "y".repeat(600_000));
    std::fs::write(&path, torn).unwrap();
    publish(&FilePublisher::new(), &[letter(&path, "2", "x")]).await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert!(text.lines().all(|line| line.ends_with('}')), "{text}");
}

fn dead(path: &Path, own_id: &str, first_at_ms: u64) -> Outgoing {
    let mut letter = letter(path, "7", "x");
    letter.own_id = own_id.to_owned();
    letter.headers.push(("onceward-first-at-ms".into(), first_at_ms.to_string().into()));
    letter
}

#[tokio::test]
async fn a_letter_whose_publish_is_repeated_after_a_crash_stands_in_the_file_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.dlq");
    // The process died after the line was written and before the publish was known to have happened.
    publish(&FilePublisher::new(), &[dead(&path, "k1-0", 1_000_000), dead(&path, "k2-0", 1_000_000)]).await;
    let again = [dead(&path, "k1-0", 1_000_003), dead(&path, "k3-0", 1_000_000)];
    publish(&FilePublisher::new(), &again).await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");

    // The key was forgotten, and its message failed once more: that is another dead letter.
    publish(&FilePublisher::new(), &[dead(&path, "k1-0", 9_000_000)]).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
}

#[tokio::test]
async fn a_letter_with_all_that_a_message_may_have_is_the_same_when_it_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.dlq");
    let made = std::time::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let full = Outgoing {
        own_id: "k1-0".into(),
        timestamp: Some(made),
        headers: vec![
            ("a".into(), "1".into()),
            ("a".into(), Bytes::from_static(b"\xff")),
            ("onceward-id".into(), "stale".into()),
            ("onceward-scope".into(), "test".into()),
            ("onceward-generation".into(), "0".into()),
        ],
        null_payload: true,
        ..letter(&path, "producer's", "")
    };
    let bare = Outgoing { order_key: None, ..letter(&path, "", "") };
    publish(&FilePublisher::new(), &[full, bare]).await;
    // By way of `cat` into the source: raw or not, the letter is the message that it was.
    for config in [envelope_config(&path), FileConfig::new(&path)] {
        let is_raw = config.format == Format::Raw;
        let mut consumer = open_with(config, &Checkpoints::new()).await;
        let deliveries = receive(&mut consumer, 2).await;
        let message = &deliveries[0].message;
        assert_eq!((message.id(), message.timestamp()), (Some("producer's".as_bytes()), Some(made)));
        assert!(message.has_null_payload() && message.payload().is_empty() && message.defect().is_none());
        let headers: Vec<_> = message.headers().map(|(name, value)| (name, &value[..])).collect();
        let expected: [(&str, &[u8]); 5] = [
            ("a", b"1"),
            ("a", b"\xff"),
            ("onceward-scope", b"test"),
            ("onceward-generation", b"0"),
            ("onceward-id", b"k1-0"),
        ];
        assert_eq!(headers, expected);
        if !is_raw {
            let message = &deliveries[1].message;
            assert_eq!((message.id(), message.order_key(), message.has_null_payload()), (None, None, false));
        }
    }
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
    assert!(text.starts_with("{\"id\":\"1\""), "{text}");
    assert_eq!(text.lines().count(), 1, "what the writer before has left is removed");
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

/// Writes letters to a file that may not grow beyond 32 kB, until all have arrived or failed; then says which failed.
async fn publish_until_full(path: &Path) {
    let publisher = FilePublisher::new();
    let mut failed = String::new();
    for number in 0..300 {
        let batch = [dead(path, &format!("k{number}-0"), 1), dead(path, &format!("l{number}-0"), 1)];
        for (letter, result) in batch.iter().zip(publisher.publish(&batch).await) {
            if let Err(error) = result {
                failed.push_str(&letter.own_id);
                failed.push('\n');
                assert!(error.is_retryable(), "{error}");
            }
        }
    }
    std::fs::write(path.with_extension("failed"), failed).unwrap();
}

/// Runs itself once more, in a process whose files may not grow: the kernel then writes a part and refuses the rest, as it
/// does when a disk is full.
#[tokio::test]
async fn a_full_disk_leaves_no_half_line_and_no_letter_twice() {
    const PATH: &str = "ONCEWARD_TEST_FULL";
    if let Ok(path) = std::env::var(PATH) {
        return publish_until_full(Path::new(&path)).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.dlq");
    let limited = r#"trap '' XFSZ; ulimit -f 32; exec "$0" --exact "$1""#;
    let output = std::process::Command::new("bash")
        .args(["-c", limited, std::env::current_exe().unwrap().to_str().unwrap()])
        .arg("publisher::a_full_disk_leaves_no_half_line_and_no_letter_twice")
        .env(PATH, &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.ends_with("}\n") && text.len() < 32 * 1024, "{}", text.len());

    let said = std::fs::read_to_string(path.with_extension("failed")).unwrap();
    let failed: Vec<_> = said.lines().collect();
    assert!(failed.len() > 100, "{}", failed.len());
    let again: Vec<_> = failed.iter().map(|own_id| dead(&path, own_id, 1)).collect();
    publish(&FilePublisher::new(), &again).await;
    let mut consumer = open_with(envelope_config(&path), &Checkpoints::new()).await;
    let mut ids = HashSet::new();
    while ids.len() < 600 {
        let batch = tokio::time::timeout(LIMIT, consumer.receive()).await.unwrap().unwrap().unwrap();
        for delivery in &batch {
            assert_eq!(delivery.message.defect(), None);
            assert!(
                ids.insert(delivery.message.header("onceward-id").unwrap().clone()),
                "a letter came twice"
            );
        }
        ack(&consumer, batch).await;
    }
    end(&mut consumer).await;
}
