//! Checks of [`Consumer`]: deliveries and redeliveries.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::BrokerHarness;
use super::case::{BrokerCase, payloads, sorted, tags, texts};
use crate::consumer::Consumer;
use crate::delivery::Settlement;

/// Every published message is delivered.
pub async fn every_published_message_is_delivered<H: BrokerHarness>(harness: &H) {
    let (_case, deliveries) = BrokerCase::with(harness, 600).await;
    assert_eq!(sorted(texts(&deliveries)), sorted(payloads(600)));
}

/// Every delivery has a tag of its own.
pub async fn every_delivery_has_a_tag_of_its_own<H: BrokerHarness>(harness: &H) {
    let (_case, deliveries) = BrokerCase::with(harness, 50).await;
    let distinct: HashSet<_> = tags(&deliveries).into_iter().collect();
    assert_eq!(distinct.len(), 50);
}

/// A source that declares itself ordered delivers in order, also after it was reopened.
pub async fn an_ordered_source_keeps_the_order<H: BrokerHarness>(harness: &H) {
    let (case, deliveries) = BrokerCase::with(harness, 50).await;
    if !case.consumer.capabilities().ordered {
        return;
    }
    assert_eq!(texts(&deliveries), payloads(50));
    case.settle(&tags(&deliveries)[..20], Settlement::Ack).await;
    case.close().await;
    let mut case = BrokerCase::open(harness).await;
    assert_eq!(texts(&case.take(30).await), payloads(50)[20..]);
}

/// Two messages never share a position, and a message keeps its position.
pub async fn a_position_is_a_messages_own_and_stays<H: BrokerHarness>(harness: &H) {
    let (case, deliveries) = BrokerCase::with(harness, 20).await;
    let of = |deliveries: &[crate::adapter::Delivery]| -> HashSet<_> {
        let pair = |delivery: &crate::adapter::Delivery| {
            delivery
                .message
                .position()
                .cloned()
                .map(|position| (position, delivery.message.payload().clone()))
        };
        deliveries.iter().filter_map(pair).collect()
    };
    let before = of(&deliveries);
    let positions: HashSet<_> = before.iter().map(|(position, _)| position.clone()).collect();
    assert_eq!(positions.len(), before.len(), "two messages share a position");
    assert!(before.is_empty() || before.len() == 20, "either each message has a position or none");
    case.close().await;
    let mut case = BrokerCase::open(harness).await;
    assert_eq!(of(&case.take(20).await), before);
}

/// A finite source ends when everything is settled, and reports the end at each call; another source does not end.
pub async fn a_source_ends_if_it_says_so<H: BrokerHarness>(harness: &H) {
    let (mut case, deliveries) = BrokerCase::with(harness, 3).await;
    case.settle(&tags(&deliveries), Settlement::Ack).await;
    let finite = case.consumer.capabilities().finite;
    for _ in 0..2 {
        let limit = if finite { harness.patience() } else { harness.quiet() };
        match tokio::time::timeout(limit, case.consumer.receive()).await {
            Ok(Ok(None)) => assert!(finite, "it is not finite and ended"),
            Ok(other) => panic!("something came: {other:?}"),
            Err(_) => assert!(!finite, "it is finite and did not end"),
        }
    }
}

/// A source that declares that it reports whether it is idle is idle once everything is settled; another one never answers.
pub async fn an_idle_source_says_so_if_it_can<H: BrokerHarness>(harness: &H) {
    let (mut case, deliveries) = BrokerCase::with(harness, 3).await;
    case.settle(&tags(&deliveries), Settlement::Ack).await;
    let reports = case.consumer.capabilities().reports_idle;
    let started = tokio::time::Instant::now();
    loop {
        // As the pipeline: a source that is quiet is asked.
        assert_eq!(texts(&case.rest().await), Vec::<String>::new());
        match case.consumer.is_idle().await {
            answer if !reports => return assert_eq!(answer, None, "it does not declare that it reports it"),
            Some(true) => return,
            answer => assert!(started.elapsed() < harness.patience(), "it is empty and answers {answer:?}"),
        }
    }
}

/// A dropped `receive` loses no delivery, at whatever point it is dropped.
pub async fn a_dropped_receive_loses_no_delivery<H: BrokerHarness>(harness: &H) {
    let count = 600;
    harness.publish(&payloads(count)).await;
    let mut case = BrokerCase::open(harness).await;
    let mut deliveries = Vec::new();
    let started = tokio::time::Instant::now();
    let mut polls = 0_u64;
    while deliveries.len() < count {
        assert!(started.elapsed() < harness.patience(), "nothing more came after {}", deliveries.len());
        // Polled one to four times, with others running in between, and dropped.
        polls = polls.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut call = pin!(case.consumer.receive());
        for _ in 0..=(polls >> 62) {
            let polled = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
            match polled {
                Poll::Ready(Ok(Some(batch))) => deliveries.extend(batch),
                Poll::Ready(Ok(None)) => panic!("the source ended after {}", deliveries.len()),
                Poll::Ready(Err(error)) => assert!(error.is_retryable(), "receive failed: {error:?}"),
                Poll::Pending => {
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            break;
        }
    }
    assert_eq!(sorted(texts(&deliveries)), sorted(payloads(count)));
}

/// Deliveries that were not acked are redelivered after the consumer was closed and reopened.
pub async fn what_was_not_acked_comes_again_after_closing<H: BrokerHarness>(harness: &H) {
    let (case, deliveries) = BrokerCase::with(harness, 10).await;
    let all = texts(&deliveries);
    case.settle(&[tags(&deliveries)[3]], Settlement::Ack).await;
    case.close().await;
    let mut case = BrokerCase::open(harness).await;
    let acked = &all[3];
    case.take_each(all.iter().filter(|text| *text != acked).cloned().collect()).await;
}

/// Deliveries that were not acked are redelivered after the consumer was merely dropped, as when its process dies.
pub async fn what_was_not_acked_comes_again_after_a_drop<H: BrokerHarness>(harness: &H) {
    let (case, _deliveries) = BrokerCase::with(harness, 10).await;
    drop(case);
    let mut case = BrokerCase::open(harness).await;
    case.take_each(payloads(10).into_iter().collect()).await;
}

/// Deliveries that were acked are not redelivered, by the same consumer or, after a clean close, by the next.
pub async fn what_was_acked_does_not_come_again<H: BrokerHarness>(harness: &H) {
    let (mut case, deliveries) = BrokerCase::with(harness, 10).await;
    case.settle(&tags(&deliveries), Settlement::Ack).await;
    assert_eq!(texts(&case.rest().await), Vec::<String>::new());
    case.close().await;
    let mut case = BrokerCase::open(harness).await;
    assert_eq!(texts(&case.rest().await), Vec::<String>::new());
}
