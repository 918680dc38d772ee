//! The last way out: published, confirmed, marked dead, acked; and the way back.

use super::*;
use crate::testing::{Fault, Operation};

async fn never(_: Message) -> Handled {
    Err(HandlerError::permanent("never"))
}

#[tokio::test(start_paused = true)]
async fn c23_a_message_whose_dead_letter_is_not_confirmed_is_not_acked_and_the_handler_does_not_run_again() {
    let world = World::new();
    world.publish_all(["bad", "a"]);
    let worker = world
        .worker()
        .start(|message| async move { if id_of(&message) == "a" { Ok(()) } else { never(message).await } });
    worker.letters.go_down();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((world.broker.acked(), world.broker.depth()), (1, 1));
    assert_eq!(world.state("bad").await, KeyState::Terminal);
    let tries = worker.letters.calls(Operation::Publish);
    assert!((5..200).contains(&tries), "{tries} publishes in 60 s");
    worker.letters.come_up();
    let healed = Instant::now();
    world.empty().await;
    assert!(healed.elapsed() <= 2 * config().retry.backoff.max, "{:?}", healed.elapsed());
    assert_eq!((world.runs_of("bad").len(), world.letters.sent().len()), (1, 1));
    assert_eq!(world.state("bad").await, KeyState::Dead);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 1));
    assert_eq!(summary.counters().get(Counter::DeadLetterErrors), tries);
}

#[tokio::test(start_paused = true)]
async fn rule_1_an_unconfirmed_publish_is_repeated_under_the_same_id() {
    let world = World::new();
    world.publish("bad");
    let worker = world.worker().start(never);
    worker.letters.next(Operation::Publish, Fault::ReplyLost);
    worker.letters.next(Operation::Publish, Fault::ReplyHangs);
    world.empty().await;
    let letters = world.letters.sent();
    assert_eq!(letters.len(), 3);
    assert!(letters.iter().all(|letter| letter.id == letters[0].id));
    assert_eq!(world.runs().len(), 1);
    let summary = worker.end().await;
    assert_eq!(summary.dead_lettered(), 1);
}

#[tokio::test(start_paused = true)]
async fn c24_a_death_between_confirmation_and_ack_repeats_the_publish_never_the_handler() {
    let world = World::new();
    world.publish("bad");
    let first = world.worker().start(never);
    // The worker dies with its letter confirmed and its key not marked dead.
    first.store.next(Operation::Bury, Fault::Hangs);
    eventually("the letter is confirmed", || world.letters.sent().len() == 1).await;
    first.die();
    let second = world.worker().start(never);
    world.empty().await;
    assert_eq!((world.runs().len(), world.letters.sent().len()), (1, 2));
    assert_eq!(world.letters.sent()[0].id, world.letters.sent()[1].id);
    assert_eq!(world.state("bad").await, KeyState::Dead);
    let summary = second.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_comes_back_runs_in_the_next_generation_with_all_its_attempts() {
    let world = World::new();
    world.publish("bad");
    let worker = world.worker().start(|message| async move {
        if message.generation() == 0 || message.attempt() < 3 {
            return Err(HandlerError::retry("not yet"));
        }
        Ok(())
    });
    world.empty().await;
    let letter = world.letters.sent().remove(0);
    world.broker.publish(MemoryPublisher::as_delivered(&letter));
    world.empty().await;
    let runs: Vec<_> = world.runs().iter().map(|run| (run.generation, run.attempt)).collect();
    assert_eq!(runs, [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]);
    // A late copy of the original, and of the letter, find the effect done.
    world.publish("bad");
    world.broker.publish(MemoryPublisher::as_delivered(&letter));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered(), summary.duplicates()), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_redrive_in_one_batch_with_a_copy_of_the_dead_message_is_not_taken_for_that_copy() {
    let world = World::new();
    world.publish("bad");
    let worker = world.worker().start(|message| async move {
        if message.generation() == 0 { Err(HandlerError::permanent("never")) } else { Ok(()) }
    });
    world.empty().await;
    let letter = world.letters.sent().remove(0);
    world.publish("bad");
    world.broker.publish(MemoryPublisher::as_delivered(&letter));
    world.empty().await;
    let summary = worker.end().await;
    let counters = summary.counters();
    assert_eq!((summary.handled(), counters.get(Counter::DuplicatesOfDead)), (1, 1));
    assert_eq!(world.state("bad").await, KeyState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_redriven_message_that_dies_again_is_dead_lettered_again_under_another_id() {
    let world = World::new();
    world.publish("bad");
    let worker = world.worker().start(never);
    world.empty().await;
    let first = world.letters.sent().remove(0);
    world.broker.publish(MemoryPublisher::as_delivered(&first));
    world.empty().await;
    // The same letter once more: its generation is dead.
    world.broker.publish(MemoryPublisher::as_delivered(&first));
    world.empty().await;
    let letters = world.letters.sent();
    assert_eq!(letters.len(), 2);
    assert_ne!(letters[0].own_id, letters[1].own_id);
    assert!(letters[1].headers.contains(&("onceward-generation".into(), "1".into())));
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), summary.counters().get(Counter::DuplicatesOfDead)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn letters_of_two_messages_that_share_a_key_have_two_ids() {
    let world = World::new();
    world.broker.publish(Message::builder("pay 7").header("id", "a"));
    let worker = world.worker().start(never);
    world.empty().await;
    for payload in ["pay 8", "pay 9"] {
        world.broker.publish(Message::builder(payload).header("id", "a"));
    }
    world.empty().await;
    let ids: std::collections::BTreeSet<_> =
        world.letters.sent().into_iter().map(|letter| letter.own_id).collect();
    assert_eq!(ids.len(), 3, "whoever deduplicates letters by id would lose one: {ids:?}");
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn our_headers_are_honoured_only_where_producers_are_trusted_with_them() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().config(|config| config.honour_own_headers = false).start(never);
    world.empty().await;
    let letter = world.letters.sent().remove(0);
    world.broker.publish(MemoryPublisher::as_delivered(&letter));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), summary.counters().get(Counter::DuplicatesOfDead)), (1, 1));
    assert_eq!(world.runs().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_bury_does_not_keep_the_confirmed_letter_from_being_acked() {
    let world = World::new();
    world.publish("bad");
    let worker = world.worker();
    worker.store.next(Operation::Bury, Fault::ReplyLost);
    let worker = worker.start(never);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), world.letters.sent().len()), (1, 1));
    assert_eq!(world.state("bad").await, KeyState::Dead);
}
