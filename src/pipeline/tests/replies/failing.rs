//! Checks that failed replies lead to no further run, and hold up no others.

use super::super::sequences;
use super::*;

#[tokio::test(start_paused = true)]
async fn a_run_without_a_claim_is_answered_once_and_not_repeated_for_its_reply() {
    let world = World::new();
    let mailbox = Mailbox::of(&world);
    mailbox.is(Failing::Unknown);
    let builder = world.worker().config(|config| {
        config.policies = Policies { on_store_down: OnStoreDown::Process, ..Policies::default() };
    });
    builder.store.go_down();
    let worker = start(builder, &mailbox);
    world.broker.publish(asking("a", "one"));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((world.runs().len(), mailbox.tries()), (1, 1));
    assert_eq!(summary.counters().get(Counter::RepliesUndeliverable), 1);
}

/// Its record was durable at the first try: it runs no more, whatever becomes of the store meanwhile.
#[tokio::test(start_paused = true)]
async fn a_message_whose_reply_failed_never_runs_again() {
    for (mode, is_down, is_forgotten) in [
        (Mode::Observe, false, false),
        (Mode::Enforce, true, false),
        (Mode::Enforce, false, true),
        (Mode::Observe, true, true),
    ] {
        let world = World::new();
        let mailbox = Mailbox::of(&world);
        mailbox.is(Failing::Unknown);
        let builder = world.worker().config(|config| {
            config.mode = mode;
            config.policies = Policies { on_store_down: OnStoreDown::Process, ..Policies::default() };
        });
        let worker = start(builder, &mailbox);
        world.broker.publish(asking("a", "one"));
        eventually("a try", || mailbox.tries() == 1).await;
        if is_down {
            worker.store.go_down();
        }
        if is_forgotten {
            world.store.forget(&world.scope, &[world.key("a")]).await.remove(0).unwrap();
        }
        let before = mailbox.tries();
        eventually("more tries", || mailbox.tries() >= before + 3).await;
        mailbox.is(Failing::Not);
        world.empty().await;
        worker.store.come_up();
        let summary = worker.end().await;
        assert_eq!(world.runs().len(), 1, "{mode:?}, down {is_down}, forgotten {is_forgotten}");
        assert_eq!(mailbox.sent(), [to("one", "run 1")]);
        assert_eq!((summary.handled(), summary.duplicates()), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn copies_of_a_run_without_a_claim_are_acked_without_a_reply() {
    let world = World::new();
    let mailbox = Mailbox::of(&world);
    let builder = world.worker().config(|config| {
        config.policies = Policies { on_store_down: OnStoreDown::Process, ..Policies::default() };
    });
    builder.store.go_down();
    ["one", "two", "three"].into_iter().for_each(|name| world.broker.publish(asking("a", name)));
    let worker = start(builder, &mailbox);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(mailbox.sent(), [to("one", "run 1")]);
    assert_eq!((world.runs().len(), summary.handled(), summary.duplicates()), (1, 1, 2));
    assert_eq!(summary.counters().get(Counter::RepliesUndeliverable), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lane_does_not_wait_for_replies_that_get_no_answer() {
    for lane_batch in [32, 1] {
        let world = World::with(Habits { batch: 64, ..Habits::default() });
        let mailbox = Mailbox::of(&world);
        mailbox.is(Failing::Silent);
        let worker = world.worker().config(in_order).config(|config| config.lane_batch = lane_batch);
        let worker = start(worker, &mailbox);
        for numbers in [1..=20, 21..=40] {
            let last = *numbers.end() as usize;
            numbers.for_each(|number| {
                world.broker.publish(in_lane("A", number).header("reply-to", number.to_string()));
            });
            eventually("all have run", || world.runs().len() == last).await;
        }
        // Less than one reply takes that gets no answer.
        let took = world.since_start(Instant::now());
        assert!(took < SECOND, "{took:?} with sequences of {lane_batch}");
        mailbox.is(Failing::Not);
        world.empty().await;
        let summary = worker.end().await;
        assert_eq!(world.ids(), sequences::numbered("A", 1..=40));
        assert_eq!((summary.handled(), summary.duplicates()), (40, 0));
    }
}

/// It may be back in a moment, or full for long.
#[tokio::test(start_paused = true)]
async fn a_refused_reply_is_sent_once_more_and_then_given_up() {
    for recovers in [true, false] {
        let world = World::new();
        let mailbox = Mailbox::of(&world);
        mailbox.is(Failing::Refused);
        let worker = start(world.worker(), &mailbox);
        world.broker.publish(asking("a", "one"));
        eventually("a try", || mailbox.tries() == 1).await;
        if recovers {
            mailbox.is(Failing::Not);
        }
        world.empty().await;
        let summary = worker.end().await;
        let count = |counter| summary.counters().get(counter);
        let ends = (count(Counter::Replies), count(Counter::RepliesUndeliverable));
        assert_eq!(ends, if recovers { (1, 0) } else { (0, 1) });
        assert_eq!((mailbox.tries(), count(Counter::ReplyErrors), world.runs().len()), (2, 1, 1));
        assert_eq!((summary.handled(), summary.duplicates()), (1, 0));
    }
}
