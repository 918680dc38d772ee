//! Follow mode: files that grow, appear, are rotated and truncated while they are read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use onceward::adapter::{Consumer, Settlement};

use crate::support::{
    self, Checkpoints, ack, append, end, file, follow, open, receive, run_to_end, settle, texts, until_idle,
};

/// Renames `path` as log rotation does.
fn rotate(path: &Path) -> PathBuf {
    let rotated = path.with_extension("1");
    std::fs::rename(path, &rotated).unwrap();
    rotated
}

#[tokio::test]
async fn lines_come_as_they_are_written_and_a_line_waits_for_its_newline() {
    let (_directory, path) = file("one\ntw");
    let checkpoints = Checkpoints::new();
    let mut consumer = follow(&path, &checkpoints).await;
    let one = receive(&mut consumer, 1).await;
    assert_eq!(texts(&one), ["one"]);
    ack(&consumer, one).await;
    until_idle(&mut consumer).await;
    append(&path, "o\nthree\n");
    let rest = receive(&mut consumer, 2).await;
    assert_eq!(texts(&rest), ["two", "three"]);
    ack(&consumer, rest).await;
    until_idle(&mut consumer).await;
    assert_eq!(checkpoints.offset(), 14);
    consumer.close().await.unwrap();

    append(&path, "four\n");
    let mut consumer = follow(&path, &checkpoints).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["four"]);
}

#[tokio::test]
async fn a_file_that_is_not_there_yet_is_waited_for() {
    let (_directory, path) = file("");
    std::fs::remove_file(&path).unwrap();
    let mut consumer = follow(&path, &Checkpoints::new()).await;
    until_idle(&mut consumer).await;
    std::fs::write(&path, "one\n").unwrap();
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["one"]);
}

#[tokio::test]
async fn after_a_rotation_the_old_file_is_finished_before_the_new_one_begins() {
    let (_directory, path) = file("one\n");
    let checkpoints = Checkpoints::new();
    let mut consumer = follow(&path, &checkpoints).await;
    let one = receive(&mut consumer, 1).await;
    let rotated = rotate(&path);
    append(&rotated, "two\n");
    let two = receive(&mut consumer, 1).await;
    assert_eq!(texts(&two), ["two"]);
    // The writer still has the old file open when the new one appears.
    std::fs::write(&path, "three\n").unwrap();
    append(&rotated, "late\nunfinished");
    let late = receive(&mut consumer, 2).await;
    assert_eq!(texts(&late), ["late", "unfinished"]);

    // The new file begins once the old one is settled: the one kept offset is still needed for the old.
    ack(&consumer, [one, two].into_iter().flatten().collect()).await;
    let waiting = tokio::time::timeout(Duration::from_millis(500), consumer.receive()).await;
    assert!(waiting.is_err(), "the new file began too early");
    ack(&consumer, late).await;
    let three = receive(&mut consumer, 1).await;
    assert_eq!(texts(&three), ["three"]);
    let new = three[0].message.position().unwrap().clone();
    assert_eq!(new.offset, 0);
    ack(&consumer, three).await;
    let kept = checkpoints.only();
    assert_eq!((kept.offset, &*kept.incarnation), (6, &*new.incarnation));
}

#[tokio::test]
async fn writers_get_a_moment_to_finish_the_old_file_after_the_new_one_appears() {
    let (_directory, path) = file("one\n");
    let mut consumer = follow(&path, &Checkpoints::new()).await;
    let one = receive(&mut consumer, 1).await;
    ack(&consumer, one).await;
    rotate(&path);
    let appeared = Instant::now();
    std::fs::write(&path, "two\n").unwrap();
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["two"]);
    let waited = appeared.elapsed();
    assert!(waited >= Duration::from_millis(200), "went over after {waited:?}");
}

#[tokio::test]
async fn a_line_of_the_old_file_can_still_be_retried_after_the_rotation() {
    let (_directory, path) = file("one\n");
    let checkpoints = Checkpoints::new();
    let mut consumer = follow(&path, &checkpoints).await;
    let one = receive(&mut consumer, 1).await;
    let rotated = rotate(&path);
    std::fs::write(&path, "two\n").unwrap();
    std::fs::remove_file(rotated).unwrap();
    settle(&consumer, one, Settlement::Retry { after: Duration::ZERO }).await;
    let one = receive(&mut consumer, 1).await;
    assert_eq!(texts(&one), ["one"]);
    ack(&consumer, one).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["two"]);
}

#[tokio::test]
async fn a_rotation_while_nobody_reads_loses_nothing() {
    for new_file in [Some("three\n"), None] {
        let (_directory, path) = file("one\ntwo\n");
        let checkpoints = Checkpoints::new();
        let mut consumer = follow(&path, &checkpoints).await;
        let mut deliveries = receive(&mut consumer, 2).await;
        let unsettled = deliveries.split_off(1);
        ack(&consumer, deliveries).await;
        let before = unsettled[0].message.position().cloned();
        drop((unsettled, consumer));

        append(&path, "missed\n");
        rotate(&path);
        if let Some(text) = new_file {
            std::fs::write(&path, text).unwrap();
        }
        let mut consumer = follow(&path, &checkpoints).await;
        let old = receive(&mut consumer, 2).await;
        assert_eq!(texts(&old), ["two", "missed"]);
        assert_eq!(old[0].message.position(), before.as_ref());
        ack(&consumer, old).await;
        if new_file.is_none() {
            std::fs::write(&path, "three\n").unwrap();
        }
        let new = receive(&mut consumer, 1).await;
        assert_eq!(texts(&new), ["three"]);
        ack(&consumer, new).await;
        consumer.close().await.unwrap();
        run_to_end(&path, &checkpoints, &[]).await;
    }
}

#[tokio::test]
async fn a_truncated_or_rewritten_file_begins_anew() {
    type Change = fn(&Path);
    let long = "x".repeat(4990) + "\n";
    let changes: [(String, Change, &str); 3] = [
        (
            "one\ntwo\n".into(),
            |path| {
                // Copy and truncate, as log rotation may do.
                std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
                append(path, "new\n");
            },
            "new",
        ),
        ("one\ntwo\n".into(), |path| std::fs::write(path, "new\nand longer than before\n").unwrap(), "new"),
        // The beginning that it is recognised by is as it was.
        (
            format!("{long}two\n"),
            |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4991).unwrap(),
            long.trim_end(),
        ),
    ];
    for (text, change, first) in changes {
        let (_directory, path) = file(text);
        let checkpoints = Checkpoints::new();
        let mut consumer = follow(&path, &checkpoints).await;
        let deliveries = receive(&mut consumer, 2).await;
        let before = deliveries[0].message.position().cloned().unwrap();
        ack(&consumer, deliveries).await;
        until_idle(&mut consumer).await;
        change(&path);
        let batch = tokio::time::timeout(support::LIMIT, consumer.receive()).await.unwrap().unwrap().unwrap();
        assert_eq!(texts(&batch)[0], first);
        let after = batch[0].message.position().unwrap();
        assert_eq!(after.offset, 0);
        assert_ne!(after.incarnation, before.incarnation);
    }
}

#[tokio::test]
async fn a_line_that_was_truncated_away_is_given_up_loudly_and_holds_nothing_up() {
    let (_directory, path) = file("one\n");
    let mut consumer = follow(&path, &Checkpoints::new()).await;
    let one = receive(&mut consumer, 1).await;
    let before = one[0].message.position().cloned();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    settle(&consumer, one, Settlement::Retry { after: Duration::ZERO }).await;
    append(&path, "new\n");
    // The line at the offset now has the same length, but is another line: it is delivered as a new one, not as the
    // truncated one.
    let new = receive(&mut consumer, 1).await;
    assert_eq!(texts(&new), ["new"]);
    assert!(!new[0].message.is_redelivered());
    assert_ne!(new[0].message.position(), before.as_ref());
}

#[tokio::test]
async fn many_rotations_under_load_deliver_every_line_once_and_in_order() {
    const FILES: usize = 6;
    const LINES: usize = 300;
    let (_directory, path) = file("");
    let checkpoints = Checkpoints::new();
    let mut consumer = follow(&path, &checkpoints).await;
    // The file whose lines are being read. A second rotation before the reader went on to the first new file would hide
    // that one for good, so the writer waits for it.
    let read = Arc::new(AtomicUsize::new(0));
    let writer = tokio::task::spawn_blocking({
        let (path, read) = (path.clone(), Arc::clone(&read));
        move || {
            for file in 0..FILES {
                for line in 0..LINES {
                    append(&path, format!("{file}-{line}\n"));
                }
                let started = Instant::now();
                while read.load(Ordering::SeqCst) < file {
                    assert!(started.elapsed() < support::LIMIT, "the reader does not go on");
                    std::thread::sleep(Duration::from_millis(1));
                }
                if file + 1 < FILES {
                    rotate(&path);
                    std::fs::write(&path, "").unwrap();
                }
            }
        }
    });
    let mut seen = Vec::new();
    while seen.len() < FILES * LINES {
        let batch = tokio::time::timeout(support::LIMIT, consumer.receive()).await.unwrap().unwrap().unwrap();
        seen.extend(texts(&batch));
        let file: usize = seen[seen.len() - 1].split('-').next().unwrap().parse().unwrap();
        read.store(file, Ordering::SeqCst);
        ack(&consumer, batch).await;
    }
    writer.await.unwrap();
    let expected: Vec<_> =
        (0..FILES).flat_map(|file| (0..LINES).map(move |line| format!("{file}-{line}"))).collect();
    assert_eq!(seen, expected);
    until_idle(&mut consumer).await;
    consumer.close().await.unwrap();
    let mut rest = open(&path, &checkpoints).await;
    end(&mut rest).await;
}
