//! Checks of [`Acker`](crate::adapter::Acker): how deliveries are settled.

use std::time::Duration;

use super::BrokerHarness;
use super::case::{BrokerCase, is_done, payloads, sorted, tags, texts};
use crate::consumer::Consumer;
use crate::delivery::{Settlement, Tag};

/// Items of one batch may be settled in any order, and each has its result.
pub async fn a_batch_is_settled_in_any_order<H: BrokerHarness>(harness: &H) {
    let (mut case, deliveries) = BrokerCase::with(harness, 30).await;
    let mut tags = tags(&deliveries);
    tags.reverse();
    tags.rotate_left(7);
    case.settle(&tags, Settlement::Ack).await;
    assert_eq!(texts(&case.rest().await), Vec::<String>::new());
}

/// An empty batch has no results.
pub async fn an_empty_batch_has_no_results<H: BrokerHarness>(harness: &H) {
    let case = BrokerCase::open(harness).await;
    assert!(case.consumer.acker().settle(&[]).await.is_empty());
}

/// The results of a batch stand in its order: an item that is not ours is distinguished from its neighbours, and they
/// are settled nevertheless.
pub async fn one_foreign_item_fails_alone_and_settles_nothing<H: BrokerHarness>(harness: &H) {
    let (mut case, deliveries) = BrokerCase::with(harness, 3).await;
    let own = tags(&deliveries);
    let foreign = Tag { epoch: u64::MAX, number: u64::MAX };
    let batch = [own[0], foreign, own[2]].map(|tag| (tag, Settlement::Ack));
    let results = case.consumer.acker().settle(&batch).await;
    let done: Vec<_> = results.iter().map(is_done).collect();
    assert_eq!(done, [true, false, true], "{results:?}");
    case.settle(&[own[1]], Settlement::Ack).await;
    assert_eq!(texts(&case.rest().await), Vec::<String>::new());
}

/// A retried message is delivered again by the same consumer, with another tag.
pub async fn a_retried_message_comes_again_with_another_tag<H: BrokerHarness>(harness: &H) {
    let (mut case, deliveries) = BrokerCase::with(harness, 5).await;
    let tags = tags(&deliveries);
    let retried = texts(&deliveries)[2].clone();
    let mut batch: Vec<_> = tags.iter().map(|tag| (*tag, Settlement::Ack)).collect();
    batch[2].1 = Settlement::Retry { after: Duration::ZERO };
    case.settle_batch(&batch).await;
    let again = case.take(1).await;
    assert_eq!(texts(&again), [retried]);
    assert!(!tags.contains(&again[0].tag), "the tag is not its own");
    case.settle(&[again[0].tag], Settlement::Ack).await;
    assert_eq!(texts(&case.rest().await), Vec::<String>::new());
}

/// A source that declares delayed retries delivers a retried message only after the delay.
pub async fn a_delayed_retry_keeps_its_delay<H: BrokerHarness>(harness: &H) {
    let (mut case, deliveries) = BrokerCase::with(harness, 1).await;
    if !case.consumer.capabilities().delayed_retry {
        return;
    }
    let (tag, after) = (deliveries[0].tag, harness.quiet() * 3);
    let retried = tokio::time::Instant::now();
    case.settle(&[tag], Settlement::Retry { after }).await;
    case.take(1).await;
    // A broker may round its delays, to whole seconds or a clock's tick.
    assert!(retried.elapsed() >= after / 2, "came back after {:?} of {after:?}", retried.elapsed());
}

/// An abandoned message is delivered again, at the latest after the consumer was reopened.
pub async fn an_abandoned_message_is_given_back<H: BrokerHarness>(harness: &H) {
    let (case, deliveries) = BrokerCase::with(harness, 4).await;
    case.settle(&tags(&deliveries), Settlement::Abandon).await;
    case.close().await;
    let mut case = BrokerCase::open(harness).await;
    assert_eq!(sorted(texts(&case.take(4).await)), sorted(payloads(4)));
}

/// The acker outlives the consumer: late settlements are answered, item by item, and never crash.
pub async fn a_late_settlement_is_answered<H: BrokerHarness>(harness: &H) {
    let (case, deliveries) = BrokerCase::with(harness, 3).await;
    let acker = case.consumer.acker();
    let batch: Vec<_> = tags(&deliveries).into_iter().map(|tag| (tag, Settlement::Ack)).collect();
    drop(case);
    let answered = tokio::time::timeout(harness.patience(), acker.settle(&batch)).await;
    assert_eq!(answered.map(|results| results.len()).ok(), Some(3), "a late settlement hangs");
}

/// A source with a heartbeat keeps deliveries alive beyond it, with one result for each item.
pub async fn an_extended_delivery_stays_ours<H: BrokerHarness>(harness: &H) {
    let (mut case, deliveries) = BrokerCase::with(harness, 3).await;
    let Some(heartbeat) = case.consumer.capabilities().heartbeat else { return };
    let tags = tags(&deliveries);
    let until = tokio::time::Instant::now() + heartbeat * 2;
    while tokio::time::Instant::now() < until {
        let results = case.consumer.acker().extend(&tags).await;
        assert!(results.len() == tags.len() && results.iter().all(is_done), "{results:?}");
        tokio::time::sleep(heartbeat / 3).await;
    }
    assert_eq!(texts(&case.rest().await), Vec::<String>::new());
    case.settle(&tags, Settlement::Ack).await;
}
