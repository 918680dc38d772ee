//! Checks what the memory broker redelivers, and at which place in the order.

use std::time::Duration;

use super::*;

fn three() -> MemoryBroker {
    let broker = MemoryBroker::new(Habits { batch: 2, ..Habits::default() });
    ["a", "b", "c"].into_iter().for_each(|payload| broker.publish(Message::builder(payload)));
    broker
}

fn payloads(deliveries: &[Delivery]) -> Vec<&[u8]> {
    deliveries.iter().map(|delivery| &delivery.message.payload()[..]).collect()
}

#[tokio::test(start_paused = true)]
async fn a_dropped_consumer_gives_back_its_own_deliveries_where_they_stood() {
    let broker = three();
    let (mut first, mut second) = (broker.consumer(), broker.consumer());
    let taken = first.receive().await.unwrap().unwrap();
    let other = second.receive().await.unwrap().unwrap();
    assert_eq!((payloads(&taken), payloads(&other)), (vec![&b"a"[..], b"b"], vec![&b"c"[..]]));
    drop(first);
    let again = second.receive().await.unwrap().unwrap();
    assert_eq!(payloads(&again), [b"a", b"b"]);
    // Late settlements of the dropped consumer are answered, and settle nothing.
    let late = broker.settle(&[(taken[0].tag, Settlement::Ack)]).await;
    assert_eq!(late[0].as_ref().ok(), Some(&Settled::TooLate));
    assert_eq!((broker.acked(), broker.depth()), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn messages_given_back_one_by_one_keep_their_order() {
    let broker = three();
    let mut consumer = broker.consumer();
    let taken = consumer.receive().await.unwrap().unwrap();
    let batch: Vec<_> = taken.iter().map(|delivery| (delivery.tag, Settlement::Abandon)).collect();
    broker.settle(&batch[..1]).await;
    broker.settle(&batch[1..]).await;
    let again = consumer.receive().await.unwrap().unwrap();
    assert_eq!(payloads(&again), [b"a", b"b"]);
}

#[tokio::test(start_paused = true)]
async fn deliveries_whose_visibility_ends_come_again_where_they_stood() {
    let visibility = Duration::from_secs(3);
    let broker = MemoryBroker::new(Habits { batch: 2, visibility: Some(visibility), ..Habits::default() });
    ["a", "b", "c"].into_iter().for_each(|payload| broker.publish(Message::builder(payload)));
    let mut consumer = broker.consumer();
    let taken = consumer.receive().await.unwrap().unwrap();
    assert_eq!(payloads(&taken), [b"a", b"b"]);
    tokio::time::advance(visibility).await;
    let again = consumer.receive().await.unwrap().unwrap();
    assert_eq!(payloads(&again), [b"a", b"b"], "c does not overtake them");
    let late = broker.settle(&[(taken[0].tag, Settlement::Ack)]).await;
    assert_eq!(late[0].as_ref().ok(), Some(&Settled::TooLate));
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_left_comes_back_under_another_epoch_with_what_was_not_settled() {
    let broker = MemoryBroker::new(Habits { partitions: 2, ..Habits::default() });
    for (partition, payload) in [(0, "a"), (1, "b"), (0, "c")] {
        broker.publish_to(partition, Message::builder(payload));
    }
    let mut consumer = broker.consumer();
    let taken = consumer.receive().await.unwrap().unwrap();
    assert_eq!(payloads(&taken), [b"a", b"b", b"c"]);
    broker.leave(1, 0);
    broker.publish_to(0, Message::builder("d"));
    broker.settle(&[(taken[0].tag, Settlement::Ack)]).await;
    broker.assign(1, 0);
    let again = consumer.receive().await.unwrap().unwrap();
    assert_eq!(payloads(&again), [b"c", b"d"]);
    assert_ne!(again[0].tag.epoch, taken[2].tag.epoch);
    let acks = [&taken[2], &taken[1]].map(|delivery| (delivery.tag, Settlement::Ack));
    let answers: Vec<_> = broker.settle(&acks).await.into_iter().map(Result::ok).collect();
    assert_eq!(answers, [Some(Settled::TooLate), Some(Settled::Done)]);
    // A partition that was not taken is not assigned again.
    broker.assign(1, 1);
    assert_eq!(broker.unsettled(), 2);
}
