//! Tests of saved offsets: which lines are redelivered after a restart, and which are not.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use onceward::adapter::{Consumer, Settled, Settlement};
use onceward_file::FileConfig;

use crate::support::{
    Checkpoints, LIMIT, ack, append, end, file, open, open_with, receive, run_to_end, settle, texts,
};

#[tokio::test]
async fn what_was_not_acked_comes_again_and_what_was_does_not() {
    let (_directory, path) = file("one\ntwo\nthree\n");
    let checkpoints = Checkpoints::new();
    let mut consumer = open(&path, &checkpoints).await;
    let mut deliveries = receive(&mut consumer, 3).await;
    let rest = deliveries.split_off(1);
    ack(&consumer, deliveries).await;
    drop(rest);
    drop(consumer);

    run_to_end(&path, &checkpoints, &["two", "three"]).await;
    run_to_end(&path, &checkpoints, &[]).await;
    append(&path, "four\n");
    run_to_end(&path, &checkpoints, &["four"]).await;
}

#[tokio::test]
async fn acks_out_of_order_hold_the_offset_until_the_hole_is_filled() {
    let (_directory, path) = file("one\ntwo\nthree\n");
    let checkpoints = Checkpoints::new();
    let mut consumer = open(&path, &checkpoints).await;
    let mut deliveries = receive(&mut consumer, 3).await;
    let late = deliveries.split_off(1);
    ack(&consumer, late).await;
    assert_eq!(checkpoints.offset(), 0);
    drop(consumer);

    let mut consumer = open(&path, &checkpoints).await;
    let again = receive(&mut consumer, 3).await;
    assert_eq!(texts(&again), ["one", "two", "three"]);
    ack(&consumer, again).await;
    assert_eq!(checkpoints.offset(), 14);
}

#[tokio::test]
async fn one_settle_call_saves_once_and_before_it_answers() {
    let (_directory, path) = file("line\n".repeat(200));
    let checkpoints = Checkpoints::new();
    let mut consumer = open(&path, &checkpoints).await;
    let deliveries = receive(&mut consumer, 200).await;
    let before = checkpoints.saves.load(Ordering::SeqCst);
    ack(&consumer, deliveries).await;
    assert_eq!(checkpoints.saves.load(Ordering::SeqCst), before + 1);
    assert_eq!(checkpoints.offset(), 1000);
}

#[tokio::test]
async fn a_save_that_fails_is_reported_and_may_be_repeated() {
    let (_directory, path) = file("one\ntwo\n");
    let checkpoints = Checkpoints::new();
    let mut consumer = open(&path, &checkpoints).await;
    let deliveries = receive(&mut consumer, 2).await;
    let items: Vec<_> = deliveries.iter().map(|delivery| (delivery.tag, Settlement::Ack)).collect();
    checkpoints.failing.store(true, Ordering::SeqCst);
    for result in consumer.acker().settle(&items).await {
        assert!(result.unwrap_err().is_retryable());
    }
    assert_eq!(checkpoints.offset(), 0);
    checkpoints.failing.store(false, Ordering::SeqCst);
    for result in consumer.acker().settle(&items).await {
        assert_eq!(result.unwrap(), Settled::Done);
    }
    assert_eq!(checkpoints.offset(), 8);
}

#[tokio::test]
async fn no_line_is_delivered_before_its_file_would_be_recognised() {
    let (_directory, path) = file("one\ntwo\n");
    let checkpoints = Checkpoints::new();
    checkpoints.failing.store(true, Ordering::SeqCst);
    let mut consumer = open(&path, &checkpoints).await;
    assert!(consumer.receive().await.unwrap_err().is_retryable());
    checkpoints.failing.store(false, Ordering::SeqCst);
    let deliveries = receive(&mut consumer, 2).await;
    let incarnation = &deliveries[0].message.position().unwrap().incarnation;
    assert_eq!(checkpoints.only().incarnation, **incarnation);
    // The program dies before anything is settled; the file is rewritten in place: other lines at the same offsets.
    drop(consumer);
    std::fs::write(&path, "ONE\nTWO\n").unwrap();
    let mut consumer = open(&path, &checkpoints).await;
    let others = receive(&mut consumer, 2).await;
    assert_ne!(&others[0].message.position().unwrap().incarnation, incarnation);
}

#[tokio::test]
async fn a_retried_line_comes_again_in_the_same_run_after_its_delay() {
    let (_directory, path) = file("one\ntwo\nthree\n");
    let checkpoints = Checkpoints::new();
    let mut consumer = open(&path, &checkpoints).await;
    let mut deliveries = receive(&mut consumer, 3).await;
    let two = deliveries.remove(1);
    let (first, after) = (two.tag, Duration::from_millis(300));
    settle(&consumer, vec![two], Settlement::Retry { after }).await;
    ack(&consumer, deliveries).await;
    assert_eq!(checkpoints.offset(), 4);

    let started = tokio::time::Instant::now();
    let batch = consumer.receive().await.unwrap().unwrap();
    assert!(started.elapsed() >= after, "came after {:?}", started.elapsed());
    assert_eq!(texts(&batch), ["two"]);
    assert!(batch[0].message.is_redelivered());
    assert_eq!(batch[0].message.position().unwrap().offset, 4);
    assert_ne!(batch[0].tag, first, "a delivery has a tag of its own");
    // The tag of the first delivery settles nothing any more.
    let stale = consumer.acker().settle(&[(first, Settlement::Ack)]).await;
    assert_eq!(stale[0].as_ref().unwrap(), &Settled::TooLate);
    assert_eq!(checkpoints.offset(), 4);
    ack(&consumer, batch).await;
    end(&mut consumer).await;
    assert_eq!(checkpoints.offset(), 14);
}

#[tokio::test]
async fn a_retried_oversize_or_unfinished_line_comes_again_as_it_was() {
    let (_directory, path) = file(format!("{}\nunfinished", "x".repeat(5000)));
    let mut config = FileConfig::new(&path);
    config.max_message_bytes = 2000;
    let mut consumer = open_with(config, &Checkpoints::new()).await;
    let deliveries = receive(&mut consumer, 2).await;
    let before: Vec<_> =
        deliveries.iter().map(|one| (one.message.defect().cloned(), one.message.payload().clone())).collect();
    settle(&consumer, deliveries, Settlement::Retry { after: Duration::ZERO }).await;
    let again = receive(&mut consumer, 2).await;
    let after: Vec<_> =
        again.iter().map(|one| (one.message.defect().cloned(), one.message.payload().clone())).collect();
    assert_eq!(before, after);
    ack(&consumer, again).await;
    end(&mut consumer).await;
}

#[tokio::test]
async fn a_finite_file_ends_only_when_every_delivery_is_settled() {
    let (_directory, path) = file("one\n");
    let mut consumer = open(&path, &Checkpoints::new()).await;
    let deliveries = receive(&mut consumer, 1).await;
    let acker = consumer.acker();
    let tag = deliveries[0].tag;
    let end = tokio::spawn(async move { consumer.receive().await });
    assert!(!end.is_finished());
    let results = acker.settle(&[(tag, Settlement::Ack)]).await;
    assert_eq!(results[0].as_ref().unwrap(), &Settled::Done);
    assert!(tokio::time::timeout(LIMIT, end).await.unwrap().unwrap().unwrap().is_none());
}

#[tokio::test]
async fn an_abandoned_line_comes_again_if_the_run_goes_on_and_else_with_the_next_one() {
    let (_directory, path) = file("one\ntwo\n");
    let checkpoints = Checkpoints::new();
    let mut consumer = open(&path, &checkpoints).await;
    let mut deliveries = receive(&mut consumer, 2).await;
    let two = deliveries.split_off(1);
    ack(&consumer, deliveries).await;
    settle(&consumer, two, Settlement::Abandon).await;
    let again = receive(&mut consumer, 1).await;
    assert_eq!(texts(&again), ["two"]);
    settle(&consumer, again, Settlement::Abandon).await;
    consumer.close().await.unwrap();
    run_to_end(&path, &checkpoints, &["two"]).await;
}

#[tokio::test]
async fn a_settlement_after_the_consumer_is_gone_is_too_late_and_moves_nothing() {
    let (_directory, path) = file("one\ntwo\n");
    let checkpoints = Checkpoints::new();
    let mut consumer = open(&path, &checkpoints).await;
    let late = receive(&mut consumer, 2).await;
    let acker = consumer.acker();
    drop(consumer);
    run_to_end(&path, &checkpoints, &["one", "two"]).await;
    let results = acker.settle(&[(late[0].tag, Settlement::Ack)]).await;
    assert_eq!(results[0].as_ref().unwrap(), &Settled::TooLate);
    assert_eq!(checkpoints.offset(), 8);
}

#[tokio::test]
async fn a_rejected_line_is_passed() {
    let (_directory, path) = file("one\ntwo\n");
    let checkpoints = Checkpoints::new();
    let mut consumer = open(&path, &checkpoints).await;
    let deliveries = receive(&mut consumer, 2).await;
    settle(&consumer, deliveries, Settlement::Reject).await;
    end(&mut consumer).await;
    assert_eq!(checkpoints.offset(), 8);
}

#[tokio::test]
async fn a_last_line_without_newline_is_delivered_but_not_passed_until_it_has_one() {
    let (_directory, path) = file("one\ntw");
    let checkpoints = Checkpoints::new();
    run_to_end(&path, &checkpoints, &["one", "tw"]).await;
    assert_eq!(checkpoints.offset(), 4);
    run_to_end(&path, &checkpoints, &["tw"]).await;
    append(&path, "o\nthree\n");
    run_to_end(&path, &checkpoints, &["two", "three"]).await;
    assert_eq!(checkpoints.offset(), 14);
    run_to_end(&path, &checkpoints, &[]).await;
}

#[tokio::test]
async fn a_last_line_without_newline_is_evidence_too() {
    let (_directory, path) = file("pay 7");
    let checkpoints = Checkpoints::new();
    run_to_end(&path, &checkpoints, &["pay 7"]).await;
    let before = checkpoints.only().incarnation;
    // Rewritten in place: another message at the same offset must not pass for the one that was handled.
    std::fs::write(&path, "pay 8\n").unwrap();
    run_to_end(&path, &checkpoints, &["pay 8"]).await;
    assert_ne!(checkpoints.only().incarnation, before);
}

#[tokio::test]
async fn positions_outlive_a_restart_and_differ_for_another_file_of_the_name() {
    let (_directory, path) = file("one\ntwo\n");
    let checkpoints = Checkpoints::new();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut consumer = open(&path, &checkpoints).await;
        seen.push(receive(&mut consumer, 2).await[1].message.position().cloned().unwrap());
    }
    assert_eq!(seen[0], seen[1]);
    // Removed and created again: many file systems give out the same inode.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "six\ntwo\n").unwrap();
    let mut consumer = open(&path, &checkpoints).await;
    let other = receive(&mut consumer, 2).await[1].message.position().cloned().unwrap();
    assert_eq!(other.offset, seen[0].offset);
    assert_ne!(other.incarnation, seen[0].incarnation);
}

/// Everything that is logged while `run` runs.
async fn logged<T>(run: impl Future<Output = T>) -> (T, String) {
    let sink = tempfile::NamedTempFile::new().unwrap();
    let writer = std::sync::Mutex::new(sink.reopen().unwrap());
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
    // While there is only one, tracing asks the thread that logs by a line for the first time, be it another test's, and
    // keeps its answer for all.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let guard = tracing::subscriber::set_default(subscriber);
    let result = run.await;
    drop(guard);
    (result, std::fs::read_to_string(sink.path()).unwrap())
}

#[tokio::test]
async fn another_file_of_the_name_is_read_from_its_beginning_with_a_warning_that_says_why() {
    let original = "one\ntwo\nthree\n";
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change, &[&str]); 4] = [
        (
            "another file has taken its name",
            |path| {
                let beside = path.with_extension("new");
                std::fs::write(&beside, "one\ntwo\nthree\nfour\n").unwrap();
                std::fs::rename(&beside, path).unwrap();
            },
            &["one", "two", "three", "four"],
        ),
        (
            "it was truncated",
            |path| {
                std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(8).unwrap();
            },
            &["one", "two"],
        ),
        (
            "its first 14 bytes are not those that were read",
            |path| {
                let inode = std::fs::metadata(path).unwrap().ino();
                std::fs::write(path, "uno\ndos\ntres\ncuatro\n").unwrap();
                assert_eq!(std::fs::metadata(path).unwrap().ino(), inode, "rewritten in place");
            },
            &["uno", "dos", "tres", "cuatro"],
        ),
        ("it was truncated", |path| std::fs::write(path, "").unwrap(), &[]),
    ];
    for (noticed, change, expected) in changes {
        let (_directory, path) = file(original);
        let checkpoints = Checkpoints::new();
        run_to_end(&path, &checkpoints, &["one", "two", "three"]).await;
        let before = checkpoints.only();
        change(&path);
        let ((), log) = logged(run_to_end(&path, &checkpoints, expected)).await;
        assert!(log.contains("WARN") && log.contains(noticed), "{noticed}: {log}");
        assert_ne!(checkpoints.only().incarnation, before.incarnation);
        let ((), quiet) = logged(run_to_end(&path, &checkpoints, &[])).await;
        assert!(!quiet.contains("WARN"), "{quiet}");
    }
}

#[tokio::test]
async fn scopes_keep_their_own_offsets() {
    let (_directory, path) = file("one\n");
    let checkpoints = Checkpoints::new();
    run_to_end(&path, &checkpoints, &["one"]).await;
    let other = onceward::Scope::parse("other").unwrap();
    let mut consumer =
        onceward_file::FileConsumer::open(FileConfig::new(&path), other, checkpoints.clone()).await.unwrap();
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["one"]);
}
