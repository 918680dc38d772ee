//! The last way out: published, confirmed, marked dead, acked; and the way back.

use super::*;
use crate::dead_letter::{Extent, FailureReport};
use crate::own_headers::OwnHeaders;
use crate::pipeline::config::{OnMismatch, OnStoreDown};
use crate::store::Reason;
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
    assert!(letters.iter().all(|letter| letter.own_id == letters[0].own_id));
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
    assert_eq!(world.letters.sent()[0].own_id, world.letters.sent()[1].own_id);
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

/// Both die in runs without a claim, so that no mismatch distinguishes them.
#[tokio::test(start_paused = true)]
async fn letters_of_messages_that_share_a_key_and_ran_without_a_claim_have_two_ids() {
    for store_down in [false, true] {
        let world = World::new();
        let worker = world.worker().config(|config| {
            config.policies.on_mismatch = OnMismatch::Process;
            config.policies.on_store_down = OnStoreDown::Process;
        });
        if store_down {
            worker.store.go_down();
        }
        let worker = worker.start(never);
        for payload in ["pay 7", "pay 8", "pay 9"] {
            world.broker.publish(Message::builder(payload).header("id", "a"));
            world.empty().await;
        }
        let letters = world.letters.sent();
        let ids: std::collections::BTreeSet<_> = letters.iter().map(|letter| &letter.own_id).collect();
        assert_eq!((letters.len(), ids.len()), (3, 3), "store_down: {store_down}: {ids:?}");
        worker.store.come_up();
        let _ = worker.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn letters_of_messages_without_a_key_and_position_are_told_apart_by_their_message_ids() {
    let letters = DeadLetters::new(Arc::new(MemoryPublisher::new()), "dead");
    let scope = Scope::parse("billing").unwrap();
    let why = FailureReport {
        reason: Reason::MissingKey,
        error: String::new(),
        attempts: 0,
        lost: 0,
        generation: 0,
        first_age: Duration::ZERO,
        again: false,
    };
    let id = |message: MessageBuilder| {
        letters.letter(&scope, None, &message.build(), &why, Extent::All, &OwnHeaders::trusted()).own_id
    };
    let of = |id: &str| Message::builder("same").message_id(id);
    let ids = [id(of("1")), id(of("2")), id(Message::builder("same")), id(Message::builder("other"))];
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), 4, "{ids:?}");
    assert_eq!(id(of("1")), ids[0], "the same for each repeat");
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

/// A letter whose payload has `bytes` bytes, of a handler that answers with a long error.
async fn never_at_length(_: Message) -> Handled {
    Err(HandlerError::permanent("x".repeat(2000)))
}

fn names(letter: &crate::publisher::Outgoing) -> Vec<&str> {
    letter.headers.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_is_too_large_goes_without_its_error_and_then_without_all_but_what_a_redrive_needs() {
    let (scope, key, generation, reason) =
        ("onceward-scope", "onceward-key", "onceward-generation", "onceward-reason");
    for (limit, error, position_and_the_like) in [(4000, true, true), (700, false, true), (150, false, false)]
    {
        let world = World::new();
        world.letters.set_limit(limit);
        world.publish("bad");
        let worker = world.worker().start(never_at_length);
        world.empty().await;
        let letter = world.letters.sent().remove(0);
        let names = names(&letter);
        assert!(["id", scope, key, generation, reason].iter().all(|name| names.contains(name)), "{names:?}");
        assert_eq!(names.contains(&"onceward-error"), error, "{limit}");
        assert_eq!(names.contains(&"onceward-attempts"), position_and_the_like, "{limit}");
        let summary = worker.end().await;
        assert_eq!(summary.dead_lettered(), 1);
        assert_eq!(summary.counters().get(Counter::LettersRefused), 0);
        assert_eq!(summary.counters().get(Counter::DeadLetterErrors), 0, "the destination is in order");
    }
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_can_never_fit_is_parked_and_its_lane_and_all_others_go_on() {
    use crate::pipeline::config::Ordering;
    let world = World::new();
    world.letters.set_limit(300);
    let large = |id: &str| message(id).header("padding", vec![b'x'; 500]).order_key("a");
    world.broker.publish(large("bad"));
    for id in ["after-1", "after-2"] {
        world.broker.publish(message(id).order_key("a"));
    }
    world.broker.publish(message("other").order_key("b"));
    let worker = world
        .worker()
        .config(|config| config.ordering = Ordering::BrokerKey)
        .start(|message| async move { if id_of(&message) == "bad" { never(message).await } else { Ok(()) } });
    eventually("all others are done", || world.broker.acked() == 3).await;
    assert!(world.since_start(Instant::now()) < SECOND, "nothing waited for the letter");
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((world.broker.acked(), world.broker.depth()), (3, 1), "it stays in its source");
    assert_eq!(world.runs_of("bad").len(), 1);
    assert_eq!((worker.count(Counter::LettersRefused), worker.count(Counter::Parked)), (1, 1));
    let tries = worker.letters.calls(Operation::Publish);
    assert!((30..=60).contains(&tries), "{tries} publishes in 60 s, three for each try at the longest delay");
    // An operator raises the limit.
    world.letters.set_limit(usize::MAX);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (3, 1));
    assert_eq!(world.letters.sent().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn by_policy_a_letter_that_can_never_fit_is_dropped_and_counted_and_its_key_is_dead() {
    let world = World::new();
    world.letters.set_limit(300);
    let large = || message("bad").header("padding", vec![b'x'; 500]);
    world.broker.publish(large());
    let worker = world
        .worker()
        .config(|config| config.policies.on_letter_refused = crate::pipeline::config::OnLetterRefused::Drop)
        .start(never);
    world.empty().await;
    assert_eq!(world.state("bad").await, KeyState::Dead);
    world.broker.publish(large());
    world.empty().await;
    let summary = worker.end().await;
    let counters = summary.counters();
    assert_eq!((counters.get(Counter::LettersDropped), counters.get(Counter::LettersRefused)), (1, 1));
    assert_eq!((counters.get(Counter::DuplicatesOfDead), summary.dead_lettered()), (1, 0));
    assert_eq!((world.letters.sent().len(), world.runs().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_fails_for_long_no_longer_holds_up_the_lane_and_nothing_is_dropped() {
    use crate::error::ErrorKind;
    use crate::pipeline::config::{OnLetterRefused, Ordering};
    let world = World::new();
    world.broker.publish(message("bad").order_key("a"));
    world.broker.publish(message("after").order_key("a"));
    let worker = world
        .worker()
        .config(|config| {
            config.ordering = Ordering::BrokerKey;
            config.policies.on_letter_refused = OnLetterRefused::Drop;
        })
        .start(|message| async move { if id_of(&message) == "bad" { never(message).await } else { Ok(()) } });
    worker.letters.refuse(Operation::Publish, ErrorKind::Config);
    eventually("the next of its lane is done", || world.broker.acked() == 1).await;
    assert!(worker.letters.calls(Operation::Publish) >= 10);
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!((world.broker.acked(), worker.count(Counter::LettersRefused)), (1, 1));
    let tries = worker.letters.calls(Operation::Publish);
    assert!(tries <= 10 + 600 / 5 + 1, "{tries}");
    worker.letters.accept(Operation::Publish);
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 1));
    assert_eq!((world.letters.sent().len(), world.runs_of("bad").len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_letter_whose_burial_was_cut_off_can_be_redriven() {
    let world = World::new();
    world.publish("bad");
    let worker = world.worker().start(|message| async move {
        if message.generation() == 0 { Err(HandlerError::permanent("never")) } else { Ok(()) }
    });
    worker.store.refuse(Operation::Bury, crate::error::ErrorKind::Denied);
    eventually("the letter is confirmed", || world.letters.sent().len() == 1).await;
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(
        (world.broker.acked(), world.letters.sent().len()),
        (0, 1),
        "the burial is repeated, not the letter"
    );
    // The drain deadline passes with the burial not written: the confirm alone allows the ack.
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), world.broker.depth()), (1, 0));
    assert_eq!(world.state("bad").await, KeyState::Terminal);
    let second = world.worker().start(|message| async move {
        assert_eq!(message.generation(), 1);
        Ok(())
    });
    world.broker.publish(MemoryPublisher::as_delivered(&world.letters.sent().remove(0)));
    world.empty().await;
    let summary = second.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_letter_with_a_corrected_payload_can_be_redriven() {
    let world = World::new();
    world.publish("bad");
    let worker = world.worker().start(|message| async move {
        if message.payload() == "corrected" { Ok(()) } else { Err(HandlerError::permanent("never")) }
    });
    world.empty().await;
    let mut letter = world.letters.sent().remove(0);
    letter.payload = "corrected".into();
    world.broker.publish(MemoryPublisher::as_delivered(&letter));
    world.empty().await;
    // Another copy of the corrected one is known by its own payload.
    world.broker.publish(MemoryPublisher::as_delivered(&letter));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), summary.dead_lettered()), (1, 1, 1));
    assert_eq!(summary.counters().get(Counter::Mismatches), 0);
}

#[tokio::test(start_paused = true)]
async fn a_redriven_handler_sees_the_producers_message_id() {
    let world = World::new();
    world.broker.publish(message("bad").message_id("order-7"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let ids = Arc::clone(&seen);
    let worker = world.worker().start(move |message| {
        ids.lock().unwrap().push(message.id().map(<[u8]>::to_vec));
        async move { if message.generation() == 0 { never(message).await } else { Ok(()) } }
    });
    world.empty().await;
    world.broker.publish(MemoryPublisher::as_delivered(&world.letters.sent().remove(0)));
    world.empty().await;
    assert_eq!(*seen.lock().unwrap(), vec![Some(b"order-7".to_vec()); 2]);
    let _ = worker.end().await;
}
