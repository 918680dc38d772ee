//! Checks of adding, leasing and settling rows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::broker::NOWHERE;
use super::{OutboxHarness, message};
use crate::outbox::{LONGEST_ORDER_KEY, OutboxRow, OutboxStore, RowOutcome, TakeLimits};
use crate::publisher::Outgoing;

const MANY: TakeLimits = TakeLimits { rows: 100, per_key: 100, bytes: 1_000_000 };

type Taken<H> = (<<H as OutboxHarness>::Outbox as OutboxStore>::Taken, Vec<OutboxRow>);

/// Retries until `count` rows can be taken: released rows may be free only a moment later, and while others are being taken.
async fn take_soon<H: OutboxHarness>(
    harness: &H,
    outbox: &H::Outbox,
    limits: &TakeLimits,
    count: usize,
) -> Taken<H> {
    let end = Instant::now() + harness.patience();
    loop {
        let taken = outbox.take(limits).await.expect("an answer");
        if let Some(taken) = taken.filter(|(_, rows)| rows.len() >= count) {
            return taken;
        }
        assert!(Instant::now() < end, "{count} rows cannot be taken");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn published(rows: &[OutboxRow]) -> Vec<(i64, RowOutcome)> {
    rows.iter().map(|row| (row.seq, RowOutcome::Published)).collect()
}

/// What commits comes out as it was put in, what does not commit never was, and a message without an id gets one.
pub async fn what_commits_comes_out_whole_and_what_does_not_never_was<H: OutboxHarness>(harness: &H) {
    let outbox = harness.outbox().await;
    let whole = Outgoing {
        id: "invoice-1".into(),
        headers: vec![
            ("tenant".into(), "a".into()),
            ("raw".into(), Bytes::from_static(b"\xff\0")),
            ("tenant".into(), Bytes::new()),
        ],
        payload: Bytes::from_static(b"\0\xfe"),
        ..message("customer", 0)
    };
    harness.roll_back(&[message("customer", 9), message("", 9)]).await;
    harness.commit(&[whole.clone(), message("", 1), message("", 2)]).await.expect("a commit");
    let status = outbox.status().await.expect("an answer");
    assert_eq!((status.waiting, status.failing, status.held, status.kept), (3, 0, 0, 0));
    assert!(status.oldest.is_some(), "{status:?}");

    let (taken, mut rows) = outbox.take(&MANY).await.expect("an answer").expect("rows");
    rows.sort_by_key(|row| (row.message.order_key.is_none(), row.seq));
    assert_eq!((rows.len(), rows[0].attempts), (3, 0), "{rows:?}");
    assert_eq!(rows[0].message, whole);
    for (row, number) in rows[1..].iter().zip(1..) {
        assert_eq!(row.message, Outgoing { id: row.message.id.clone(), ..message("", number) });
        assert!(row.message.id.len() >= 32, "{} is not random", row.message.id);
    }
    assert_ne!(rows[1].message.id, rows[2].message.id);
    outbox.settle(taken, published(&rows)).await.expect("noted");
    let status = outbox.status().await.expect("an answer");
    assert_eq!((status.waiting, status.kept, status.oldest), (0, 3, None));
    assert!(outbox.take(&MANY).await.expect("an answer").is_none(), "what was published is taken again");
}

/// A message that no outbox keeps is refused with the reason, and nothing of its transaction is stored.
pub async fn a_message_that_cannot_be_kept_is_refused_with_words<H: OutboxHarness>(harness: &H) {
    let longest = |more: usize| Some(vec![b'x'; LONGEST_ORDER_KEY + more].into());
    for (wrong, word) in [
        (Outgoing { destination: String::new(), ..message("", 1) }, "no destination"),
        (Outgoing { order_key: longest(1), ..message("", 1) }, "1025 bytes"),
        (Outgoing { id: "a\0".into(), ..message("", 1) }, "NUL"),
        (Outgoing { headers: vec![("a\0".into(), Bytes::new())], ..message("", 1) }, "NUL"),
    ] {
        let error = harness.commit(&[message("a", 0), wrong]).await.expect_err(word);
        assert!(error.to_string().contains(word), "{error}");
    }
    let largest = Outgoing { order_key: longest(0), ..message("", 1) };
    harness.commit(std::slice::from_ref(&largest)).await.expect("a commit");
    let outbox = harness.outbox().await;
    let (_taken, rows) = outbox.take(&MANY).await.expect("an answer").expect("rows");
    assert_eq!(rows.iter().map(|row| &row.message.order_key).collect::<Vec<_>>(), [&largest.order_key]);
}

/// The holder of the oldest row of an order key holds the key; when it is dropped, its rows are free again. The limits
/// hold.
pub async fn what_was_taken_nobody_else_gets_until_it_is_let_go<H: OutboxHarness>(harness: &H) {
    let (one, other) = (harness.outbox().await, harness.outbox().await);
    for message in [message("a", 0), message("a", 1), message("a", 2), message("b", 0), message("", 0)] {
        harness.commit(&[message]).await.expect("a commit");
    }
    let two_of_each = TakeLimits { rows: 100, per_key: 2, bytes: 1_000 };
    let (taken, rows) = one.take(&two_of_each).await.expect("an answer").expect("rows");
    let mut seen: Vec<_> =
        rows.iter().map(|row| (row.message.order_key.clone(), row.message.payload.clone())).collect();
    seen.sort();
    let key = |key: &'static str| Some(Bytes::from(key));
    assert_eq!(
        seen,
        [(None, "0".into()), (key("a"), "0".into()), (key("a"), "1".into()), (key("b"), "0".into())]
    );
    // Not even the third of "a", which no worker holds.
    assert!(other.take(&two_of_each).await.expect("an answer").is_none());
    drop(taken);
    let (taken, again) = take_soon(harness, &other, &two_of_each, rows.len()).await;
    assert_eq!(again, rows);
    other.settle(taken, published(&again)).await.expect("noted");
    let (taken, rest) = one.take(&two_of_each).await.expect("an answer").expect("rows");
    assert_eq!(rest.len(), 1);
    one.settle(taken, published(&rest)).await.expect("noted");
    // Both are larger than allowed: the first comes alone.
    harness.commit(&[message("c", 12_345), message("c", 6)]).await.expect("a commit");
    let tight = TakeLimits { bytes: 1, ..two_of_each };
    let (_taken, alone) = one.take(&tight).await.expect("an answer").expect("rows");
    assert_eq!(alone.iter().map(|row| row.message.payload.clone()).collect::<Vec<_>>(), ["12345"]);
}

/// A row that failed is not taken before its time, records how often it failed and why, and holds back its key alone.
pub async fn a_failed_row_waits_for_its_time_and_its_key_with_it<H: OutboxHarness>(harness: &H) {
    let outbox = harness.outbox().await;
    let poison = Outgoing { destination: NOWHERE.into(), id: "poison".into(), ..message("a", 0) };
    harness.commit(&[poison, message("a", 1), message("b", 0)]).await.expect("a commit");
    let (taken, rows) = outbox.take(&MANY).await.expect("an answer").expect("rows");
    let failed = |retry_in| RowOutcome::Failed { retry_in, error: "there is\0 no such queue".to_owned() };
    let outcome = |row: &OutboxRow| match &row.message.order_key.as_deref() {
        Some(b"b") => Some((row.seq, RowOutcome::Published)),
        _ if row.message.id == "poison" => Some((row.seq, failed(Duration::from_secs(3_600)))),
        // Not sent, since the one before it failed.
        _ => None,
    };
    outbox.settle(taken, rows.iter().filter_map(outcome).collect()).await.expect("noted");
    assert!(outbox.take(&MANY).await.expect("an answer").is_none(), "the failed one, or one behind it");
    harness.commit(&[message("a", 2), message("c", 0)]).await.expect("a commit");
    let (taken, rows) = outbox.take(&MANY).await.expect("an answer").expect("rows");
    assert_eq!(rows.iter().map(|row| row.message.order_key.clone()).collect::<Vec<_>>(), [Some("c".into())]);
    let soon = rows.iter().map(|row| (row.seq, failed(Duration::from_millis(50)))).collect();
    outbox.settle(taken, soon).await.expect("noted");
    let status = outbox.status().await.expect("an answer");
    assert_eq!((status.waiting, status.failing, status.held, status.kept), (4, 2, 2, 1));
    let worst = status.worst.iter().find(|row| row.id == "poison").expect("the poison");
    assert_eq!((worst.attempts, worst.destination.as_str()), (1, NOWHERE));
    assert!(worst.error.contains("no such queue"), "{worst:?}");
    let (_taken, again) = take_soon(harness, &outbox, &MANY, 1).await;
    assert_eq!(again.iter().map(|row| (row.seq, row.attempts)).collect::<Vec<_>>(), [(rows[0].seq, 1)]);
}

/// Over several calls every order key gets its turn.
pub async fn every_key_gets_its_turn_however_many_rows_the_others_have<H: OutboxHarness>(harness: &H) {
    let outbox = harness.outbox().await;
    for key in ["a", "b", "c", "d", "e"] {
        let rows: Vec<_> = (0..20).map(|number| message(key, number)).collect();
        harness.commit(&rows).await.expect("a commit");
    }
    let limits = TakeLimits { rows: 2, per_key: 1, bytes: 1_000 };
    let mut turns = HashMap::<Option<Bytes>, u32>::new();
    for _ in 0..10 {
        let (taken, rows) = outbox.take(&limits).await.expect("an answer").expect("rows");
        for row in &rows {
            *turns.entry(row.message.order_key.clone()).or_default() += 1;
        }
        outbox.settle(taken, published(&rows)).await.expect("noted");
    }
    assert_eq!(turns.len(), 5, "{turns:?}");
    assert!(turns.values().all(|turns| (3..=5).contains(turns)), "{turns:?}");
}

/// A purge removes published rows once they are old enough, up to its limit, and no others.
pub async fn only_what_was_published_long_ago_is_removed<H: OutboxHarness>(harness: &H) {
    let outbox = harness.outbox().await;
    let rows: Vec<_> = (0..5).map(|number| message("a", number)).collect();
    harness.commit(&rows).await.expect("a commit");
    let (taken, rows) = outbox.take(&MANY).await.expect("an answer").expect("rows");
    outbox.settle(taken, published(&rows[..4])).await.expect("noted");
    assert_eq!(outbox.clean(Duration::from_secs(3_600), 100).await.expect("an answer"), 0);
    assert_eq!(outbox.clean(Duration::ZERO, 3).await.expect("an answer"), 3);
    assert_eq!(outbox.clean(Duration::ZERO, 100).await.expect("an answer"), 1);
    let status = outbox.status().await.expect("an answer");
    assert_eq!((status.waiting, status.kept), (1, 0));
}
