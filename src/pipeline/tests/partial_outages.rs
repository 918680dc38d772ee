//! A store of which a part does not answer: the keys of that part wait, all others go on.

use super::*;
use crate::pipeline::config::OnStoreDown;
use crate::testing::{Fault, Operation};

/// The keys of one node of three.
fn of_node(key: &Key) -> bool {
    key.as_bytes()[0].is_multiple_of(3)
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

/// How many of `all` are keys of other nodes.
fn healthy(world: &World, all: &[String]) -> u64 {
    all.iter().filter(|id| !of_node(&world.key(id))).count() as u64
}

async fn slow(_: Message) -> Handled {
    tokio::time::sleep(10 * MS).await;
    Ok(())
}

/// How long the keys of the other nodes take, with the node or without it.
async fn without_the_node(cut_off: bool) -> Duration {
    let world = World::with(Habits { batch: 50, ..Habits::default() });
    let all = ids("m", 3_000);
    let worker = world.worker().config(|config| (config.concurrency, config.max_in_flight) = (32, 500));
    worker.store.cut_off(cut_off.then_some(of_node as fn(&Key) -> bool));
    // Without the node only its keys are published that would wait.
    let published = all.iter().filter(|id| cut_off || !of_node(&world.key(id)));
    world.publish_all(published.map(String::as_str));
    let worker = worker.start(slow);
    let began = Instant::now();
    let healthy = healthy(&world, &all);
    eventually("the others' keys are done", || world.broker.acked() == healthy).await;
    let took = began.elapsed();
    assert!(worker.counters.is_store_up());
    if cut_off {
        tokio::time::sleep(60 * SECOND).await;
        let asked = worker.store.calls(Operation::Claim);
        tokio::time::sleep(60 * SECOND).await;
        let asked = worker.store.calls(Operation::Claim) - asked;
        assert!(asked < 60 * 60, "{asked} claim calls in a minute, with nothing to do but wait");
        assert_eq!(world.runs().len() as u64, healthy, "nothing of the node ran without a claim");
        worker.store.cut_off(None);
        world.empty().await;
        assert_eq!(world.runs().len(), all.len(), "one run each");
    }
    let _ = worker.end().await;
    took
}

#[tokio::test(start_paused = true)]
async fn keys_of_the_other_nodes_go_on_at_full_speed_while_one_is_out_of_reach() {
    let (alone, beside) = (without_the_node(false).await, without_the_node(true).await);
    assert!(beside.as_secs_f64() <= alone.as_secs_f64() / 0.8, "{beside:?}, with the node {alone:?}");
}

#[tokio::test(start_paused = true)]
async fn a_single_message_of_another_node_is_not_kept_waiting_by_those_of_the_lost_one() {
    let world = World::with(Habits { batch: 1, ..Habits::default() });
    let worker = world.worker();
    worker.store.cut_off(Some(of_node));
    let worker = worker.start_ok();
    let (lost, others): (Vec<_>, Vec<_>) = ids("m", 60).into_iter().partition(|id| of_node(&world.key(id)));
    for (lost, other) in lost.iter().zip(&others) {
        world.publish(lost);
        tokio::time::sleep(7 * SECOND).await;
        let published = Instant::now();
        world.publish(other);
        eventually("it runs", || !world.runs_of(other).is_empty()).await;
        assert!(published.elapsed() <= SECOND, "{other} ran after {:?}", published.elapsed());
    }
    worker.store.cut_off(None);
    world.empty().await;
    let _ = worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_one_item_of_a_call_was_refused_is_repeated_with_the_same_token() {
    let world = World::new();
    world.publish_all(["a", "b", "c"]);
    let worker = world.worker();
    worker.store.next(Operation::Claim, Fault::Denied);
    let worker = worker.start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs().len()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn on_store_down_process_goes_on_at_full_speed() {
    for hangs in [false, true] {
        let world = World::with(Habits { batch: 100, ..Habits::default() });
        let all = ids("m", 5_000);
        world.publish_all(all.iter().map(String::as_str));
        let worker = world.worker().config(|config| config.policies.on_store_down = OnStoreDown::Process);
        if hangs {
            (0..1_000).for_each(|_| worker.store.next(Operation::Claim, Fault::Hangs));
        } else {
            worker.store.go_down();
        }
        let worker = worker.start_ok();
        let began = Instant::now();
        world.empty().await;
        assert!(began.elapsed() <= 3 * SECOND, "hangs: {hangs}, {:?}", began.elapsed());
        let asked = worker.store.calls(Operation::Claim);
        assert!(asked <= 40, "{asked} claim calls");
        let summary = worker.end().await;
        assert_eq!(summary.counters().get(Counter::Unprotected), 5_000);
    }
}
