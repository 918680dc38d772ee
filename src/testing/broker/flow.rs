//! Checks of [`FlowControl`](crate::adapter::FlowControl), for consumers that offer it.

use super::BrokerHarness;
use super::case::{BrokerCase, payloads, sorted, texts};
use crate::consumer::Consumer;
use crate::delivery::Settlement;

/// Of a paused partition nothing is delivered until it is resumed, and then everything.
pub async fn a_paused_partition_delivers_again_once_it_is_resumed<H: BrokerHarness>(harness: &H) {
    let (mut case, deliveries) = BrokerCase::with(harness, 20).await;
    let Some(flow) = case.consumer.flow() else { return };
    let paused = deliveries[0].tag.epoch;
    for delivery in &deliveries {
        case.settle(&[delivery.tag], Settlement::Ack).await;
    }
    flow.pause(paused);
    // Twice is once, and an epoch that is over is no error.
    flow.pause(paused);
    flow.pause(u64::MAX);
    // Deliveries in flight when it was paused may still come.
    let early = case.rest().await;
    assert!(early.is_empty(), "everything was delivered before: {:?}", texts(&early));
    let more: Vec<String> = payloads(60).split_off(20);
    harness.publish(&more).await;
    let of_others = case.rest().await;
    assert!(
        of_others.iter().all(|delivery| delivery.tag.epoch != paused),
        "a paused partition delivers: {:?}",
        texts(&of_others)
    );
    flow.resume(paused);
    flow.resume(u64::MAX);
    let rest = case.take(more.len() - of_others.len()).await;
    let all = texts(&of_others).into_iter().chain(texts(&rest)).collect();
    assert_eq!(sorted(all), sorted(more));
}
