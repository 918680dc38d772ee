//! Checks that waiting messages do not stop runnable ones: lanes, hot keys, long retries, parked messages, partitions
//! that leave.

use super::*;
use crate::pipeline::config::{OnExhausted, Ordering};
use crate::testing::{Fault, Operation};

fn of_partition(world: &World, partition: u32, id: &str) {
    world.broker.publish_to(partition, message(id));
}

fn partition_of(run: &Run) -> u32 {
    run.id.split_once('#').and_then(|(partition, _)| partition.parse().ok()).unwrap()
}

async fn poison_fails(message: Message) -> Handled {
    tokio::time::sleep(10 * MS).await;
    if id_of(&message).ends_with("#poison") {
        Err(HandlerError::retry_after(3600 * SECOND, "no"))
    } else {
        Ok(())
    }
}

/// Four partitions of `count` messages; how long it takes until all of the last three are done.
async fn three_partitions(poison: bool) -> (Duration, World, u64) {
    let world = World::with(Habits { batch: 50, partitions: 4, ..Habits::default() });
    let count = 400;
    if poison {
        of_partition(&world, 0, "0#poison");
    }
    // The bad partition first: all of it could be taken in before anything of the others.
    for number in 0..count {
        of_partition(&world, 0, &format!("0#{number}"));
    }
    for number in 0..count {
        (1..4).for_each(|partition| of_partition(&world, partition, &format!("{partition}#{number}")));
    }
    let worker = world
        .worker()
        .config(|config| {
            config.ordering = Ordering::Partition;
            (config.concurrency, config.max_in_flight) = (16, 64);
        })
        .start(poison_fails);
    let began = Instant::now();
    let others = || world.runs().iter().filter(|run| partition_of(run) > 0 && run.ended.is_some()).count();
    eventually("the others are done", || others() == 3 * count).await;
    let took = began.elapsed();
    let waiting = worker.counters.waiting();
    let _ = worker.end().await;
    (took, world, waiting)
}

#[tokio::test(start_paused = true)]
async fn a_poison_message_at_the_head_of_a_partition_leaves_the_others_at_full_speed() {
    let (alone, _, _) = three_partitions(false).await;
    let (beside, world, waiting) = three_partitions(true).await;
    assert!(beside.as_secs_f64() <= alone.as_secs_f64() / 0.8, "{beside:?}, without poison {alone:?}");
    assert_eq!(world.runs().iter().filter(|run| partition_of(run) == 0).count(), 1, "order is kept");
    // Its limit is half of max_in_flight, and what was under way: a batch of the broker, and one that was claimed.
    assert!((32..=32 + 2 * 50).contains(&waiting), "{waiting} wait");
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_paused_when_too_much_of_it_waits_and_resumed_below_half() {
    let world = World::with(Habits { batch: 1, partitions: 2, ..Habits::default() });
    for number in 0..100 {
        of_partition(&world, 0, &format!("0#{number}"));
    }
    let (go, wait) = tokio::sync::watch::channel(false);
    let worker = world
        .worker()
        .config(|config| {
            config.ordering = Ordering::Partition;
            config.max_waiting_per_partition = Some(10);
        })
        .start(move |_| {
            let mut wait = wait.clone();
            async move {
                wait.wait_for(|go| *go).await.unwrap();
                Ok(())
            }
        });
    tokio::time::sleep(SECOND).await;
    assert!(world.broker.is_paused(1, 0) && !world.broker.is_paused(1, 1));
    assert_eq!((worker.counters.in_flight(), worker.counters.waiting()), (11, 10));
    of_partition(&world, 1, "1#0");
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.runs().len(), 2, "the other partition goes on");
    go.send(true).unwrap();
    world.empty().await;
    let ids: Vec<_> =
        world.runs().iter().filter(|run| partition_of(run) == 0).map(|run| run.id.clone()).collect();
    assert_eq!(ids, (0..100).map(|number| format!("0#{number}")).collect::<Vec<_>>());
    let _ = worker.end().await;
}

/// A pause makes the client of Kafka fetch again what it has fetched ahead.
#[tokio::test(start_paused = true)]
async fn a_partition_that_goes_on_is_not_paused_however_much_of_it_waits() {
    let world = World::with(Habits { batch: 50, partitions: 2, ..Habits::default() });
    for number in 0..400 {
        of_partition(&world, number % 2, &format!("{}#{number}", number % 2));
    }
    let broker = world.broker.clone();
    let worker = world
        .worker()
        .config(|config| {
            config.ordering = Ordering::Partition;
            config.max_waiting_per_partition = Some(10);
        })
        .start(move |_| {
            let paused = broker.is_paused(1, 0) || broker.is_paused(1, 1);
            async move {
                assert!(!paused, "a partition is paused");
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(())
            }
        });
    world.empty().await;
    assert_eq!(worker.counters.get(Counter::Panics), 0);
    assert_eq!(world.runs().len(), 400);
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_blocked_order_key_a_hot_key_and_long_retries_leave_room_for_others() {
    type Setup = fn(&World);
    let setups: [(&str, Setup); 3] = [
        ("a blocked order key", |world| {
            (0..120).for_each(|n| world.broker.publish(message(&format!("bad{n}")).order_key("one")));
        }),
        ("long retries", |world| (0..120).for_each(|n| world.publish(&format!("bad{n}")))),
        ("a hot key", |world| (0..120).for_each(|_| world.publish("hot"))),
    ];
    for (what, setup) in setups {
        let world = World::with(Habits { batch: 10, ..Habits::default() });
        let _elsewhere = world.claim_elsewhere("hot", 600 * SECOND).await;
        setup(&world);
        world.publish_all(["x1", "x2", "x3"]);
        let worker = world
            .worker()
            .config(|config| {
                config.ordering = Ordering::BrokerKey;
                (config.concurrency, config.max_in_flight) = (50, 50);
                config.breaker.enabled = false;
            })
            .start(|message| async move {
                if id_of(&message).starts_with("bad") && message.attempt() == 1 {
                    return Err(HandlerError::retry_after(1800 * SECOND, "later"));
                }
                Ok(())
            });
        let began = Instant::now();
        eventually(what, || world.ids().iter().filter(|id| id.starts_with('x')).count() == 3).await;
        assert!(began.elapsed() <= SECOND, "{what}: others ran after {:?}", began.elapsed());
        let _ = worker.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_has_a_limit_that_is_reported_where_the_broker_cannot_pause() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    (0..200).for_each(|n| world.broker.publish(message(&format!("bad{n}")).order_key("one")));
    let worker = world
        .worker()
        .config(|config| {
            config.ordering = Ordering::BrokerKey;
            (config.concurrency, config.max_in_flight, config.max_waiting) = (10, 10, Some(60));
        })
        .start(|_| async { Err(HandlerError::retry_after(1800 * SECOND, "later")) });
    tokio::time::sleep(60 * SECOND).await;
    let waiting = worker.counters.waiting();
    assert!((60..=70).contains(&waiting), "{waiting} wait");
    assert_eq!((worker.counters.blocked_lanes(), worker.counters.in_flight()), (1, waiting));
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn parked_messages_do_not_stop_the_others_and_a_run_until_idle_ends() {
    let world = World::with(Habits { batch: 10, ..Habits::default() });
    (0..30).for_each(|n| world.publish(&format!("bad{n}")));
    (0..100).for_each(|n| world.publish(&format!("x{n}")));
    let worker = world
        .worker()
        .config(|config| {
            config.policies.on_exhausted = OnExhausted::Park;
            (config.concurrency, config.max_in_flight) = (5, 20);
            (config.until_idle, config.breaker.enabled) = (true, false);
        })
        .start(|message| async move {
            if id_of(&message).starts_with("bad") { Err(HandlerError::permanent("never")) } else { Ok(()) }
        });
    let summary = worker.ended().await;
    assert_eq!((summary.handled(), summary.parked(), summary.given_back()), (100, 30, 30));
}

#[tokio::test(start_paused = true)]
async fn of_a_leaving_partition_nothing_more_starts_and_what_has_not_started_goes_back_at_once() {
    let world = World::with(Habits { batch: 64, partitions: 2, ..Habits::default() });
    for number in 0..40 {
        of_partition(&world, 0, &format!("0#{number}"));
        of_partition(&world, 1, &format!("1#{number}"));
    }
    // One waits for a claim of another process, one is a copy.
    let _elsewhere = world.claim_elsewhere("0#held", 600 * SECOND).await;
    of_partition(&world, 0, "0#held");
    of_partition(&world, 0, "0#0");
    let worker = world.worker().config(|config| config.concurrency = 8).start(|_| async {
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    tokio::time::sleep(500 * MS).await;
    let started: Vec<_> =
        world.runs().iter().filter(|run| partition_of(run) == 0).map(|run| run.id.clone()).collect();
    assert!(!started.is_empty());
    world.broker.leave(1, 0);
    tokio::time::sleep(10 * MS).await;
    // All that has not started is back: the broker could give it to another consumer now.
    assert_eq!(world.broker.depth() - world.broker.unsettled(), 42 - started.len());
    for number in started.len()..40 {
        let state = world.state(&format!("0#{number}")).await;
        assert!(matches!(state, KeyState::Absent), "0#{number} is {state:?}");
    }
    tokio::time::sleep(20 * SECOND).await;
    let of_leaving = world.runs().iter().filter(|run| partition_of(run) == 0).count();
    assert_eq!(of_leaving, started.len(), "nothing of it started any more");
    assert_eq!(world.runs().iter().filter(|run| partition_of(run) == 1).count(), 40, "the other goes on");
    // Those that ran were finished and settled.
    let second = world.worker().start_ok();
    eventually("the new owner has the rest", || world.broker.acked() == 81).await;
    let (first, _) = (worker.end().await, second.end().await);
    assert_eq!(first.handled(), 40 + started.len() as u64);
    assert_eq!(world.runs().len(), 80, "each message ran once");
}

#[tokio::test(start_paused = true)]
async fn in_order_a_leaving_partition_frees_the_lanes_and_copies_of_others() {
    let world = World::with(Habits { batch: 64, partitions: 2, ..Habits::default() });
    let _elsewhere = world.claim_elsewhere("head", 600 * SECOND).await;
    world.broker.publish_to(0, message("head").order_key("one"));
    world.broker.publish_to(0, message("behind").order_key("one"));
    world.broker.publish_to(1, message("other").order_key("one"));
    let worker = world.worker().config(|config| config.ordering = Ordering::BrokerKey).start_ok();
    tokio::time::sleep(SECOND).await;
    assert!(world.runs().is_empty());
    world.broker.leave(1, 0);
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.ids(), ["other"]);
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.given_back()), (1, 2));
}

/// The source reports a partition while it is not asked for messages, since it has failed a moment ago.
#[tokio::test(start_paused = true)]
async fn a_partition_that_leaves_while_receiving_is_paused_starts_nothing_more() {
    let world = World::with(Habits { batch: 4, partitions: 2, ..Habits::default() });
    let small = |config: &mut PipelineConfig| (config.concurrency, config.max_in_flight) = (1, 4);
    let worker = world.worker().config(small).start(|_| async {
        tokio::time::sleep(20 * MS).await;
        Ok(())
    });
    (0..4).for_each(|number| of_partition(&world, 0, &format!("0#{number}")));
    tokio::time::sleep(10 * MS).await;
    // As soon as there is room again.
    worker.broker.next(Operation::Receive, Fault::Refused);
    eventually("receiving failed", || worker.count(Counter::ReceiveErrors) == 1).await;
    let started = world.runs().len();
    world.broker.leave(1, 0);
    tokio::time::sleep(45 * MS).await;
    assert_eq!(world.runs().len(), started, "it went on starting");
    assert_eq!(world.broker.unsettled(), 0, "what ran is settled, and the rest is back");
    assert_eq!(worker.count(Counter::ReceiveErrors), 1, "receiving was still paused");
    worker.end().await;
}
