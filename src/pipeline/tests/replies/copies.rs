//! Checks that copies in flight get the reply of the message that they follow, at once, and never another than the store keeps.

use super::*;
use crate::store::CompleteRequest;
use crate::testing::Operation;

/// So many copies of one message, each with an address of its own.
const COPIES: usize = 50;

#[tokio::test(start_paused = true)]
async fn copies_get_the_reply_of_their_leader_at_once_and_do_not_ask_the_store() {
    for (leader_asks, claims) in [(true, 1), (false, 2)] {
        let world = World::with(Habits { batch: 64, ..Habits::default() });
        let mailbox = Mailbox::of(&world);
        mailbox.is(Failing::Slow);
        world.broker.publish(if leader_asks { asking("a", "leader") } else { message("a") });
        (0..COPIES).for_each(|number| world.broker.publish(asking("a", &number.to_string())));
        let worker = start(world.worker(), &mailbox);
        world.empty().await;
        let took = world.since_start(Instant::now());
        assert!(took < SECOND, "{took:?}, one reply takes 100 ms");
        assert_eq!(worker.store.calls(Operation::Claim), claims);
        let summary = worker.end().await;
        assert_eq!((summary.handled(), summary.duplicates() as usize), (1, COPIES));
        let sent = mailbox.sent();
        assert_eq!(sent.len(), COPIES + usize::from(leader_asks));
        let key = world.key("a");
        for (_, of, result) in mailbox.sent.lock().iter() {
            assert_eq!((*of, result.as_deref()), (Some(key), Some(&b"run 1"[..])));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_run_that_came_second_gets_the_result_that_is_kept() {
    let world = Arc::new(World::with(Habits { batch: 64, ..Habits::default() }));
    let mailbox = Mailbox::of(&world);
    ["one", "two", "three"].into_iter().for_each(|name| world.broker.publish(asking("a", name)));
    let elsewhere = Arc::clone(&world);
    let (builder, unstarted) = world.worker().pipeline();
    let pipeline = builder.replies(Arc::clone(&mailbox) as _).handler(handler(move |_: Message| {
        let world = Arc::clone(&elsewhere);
        async move {
            // The record is lost, and another process runs and completes the message meanwhile.
            world.store.forget(&world.scope, &[world.key("a")]).await.remove(0).unwrap();
            let lease = world.claim_elsewhere("a", LEASE).await;
            let result = Some(Bytes::from_static(b"kept"));
            let request = CompleteRequest { result, ..CompleteRequest::new(lease, 3600 * SECOND) };
            world.store.complete(&world.scope, &[request]).await.remove(0).unwrap();
            Ok::<_, HandlerError>("not kept".to_owned())
        }
    }));
    let worker = unstarted.run(pipeline.unwrap());
    world.empty().await;
    let summary = worker.end().await;
    let mut sent = mailbox.sent();
    sent.sort();
    assert_eq!(sent, [("one".to_owned(), None), to("three", "kept"), to("two", "kept")]);
    assert_eq!((summary.handled(), summary.duplicates()), (1, 2));
}

/// The leader's address no longer exists, which says nothing about those of its copies.
#[tokio::test(start_paused = true)]
async fn copies_of_a_message_whose_reply_is_undeliverable_get_theirs() {
    let world = World::with(Habits { batch: 64, ..Habits::default() });
    let mailbox = Mailbox::of(&world);
    ["gone", "two", "three"].into_iter().for_each(|name| world.broker.publish(asking("a", name)));
    let worker = start(world.worker(), &mailbox);
    world.empty().await;
    assert_eq!((worker.store.calls(Operation::Claim), worker.count(Counter::RepliesUndeliverable)), (1, 1));
    let summary = worker.end().await;
    let mut sent = mailbox.sent();
    sent.sort();
    assert_eq!(sent, [to("three", "run 1"), to("two", "run 1")]);
    assert_eq!((summary.handled(), summary.duplicates()), (1, 2));
}
