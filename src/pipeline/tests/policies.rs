//! The closed choices: missing keys, scopes, and what a configuration refuses.

use super::*;
use crate::pipeline::config::{OnExhausted, OnMissingKey};

fn without_key(payload: &'static str) -> MessageBuilder {
    Message::builder(payload)
}

async fn two_without_keys(policy: OnMissingKey) -> (World, Summary) {
    let world = World::new();
    world.broker.publish(without_key("one"));
    world.broker.publish(without_key("two"));
    world.broker.publish(without_key("one"));
    let worker = world.worker().config(|config| config.policies.on_missing_key = policy).start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!(summary.counters().get(Counter::MissingKeys), 3);
    (world, summary)
}

#[tokio::test(start_paused = true)]
async fn c28_a_message_without_a_key_is_dead_lettered_by_default_each_under_its_own_id() {
    let (world, summary) = two_without_keys(OnMissingKey::default()).await;
    assert_eq!((summary.dead_lettered(), world.runs().len()), (3, 0));
    let letters = world.letters.sent();
    let ids: std::collections::BTreeSet<_> = letters.iter().map(|letter| &letter.own_id).collect();
    assert_eq!(ids.len(), 3);
    assert!(
        letters
            .iter()
            .all(|letter| letter.headers.contains(&("onceward-reason".into(), "missing-key".into())))
    );
}

#[tokio::test(start_paused = true)]
async fn rule_8_on_missing_key_hash_takes_equal_payloads_for_copies_and_no_others() {
    let (world, summary) = two_without_keys(OnMissingKey::Hash).await;
    assert_eq!((summary.handled(), summary.duplicates()), (2, 1));
    assert_eq!(world.ids(), ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn on_missing_key_process_runs_each_delivery_without_a_claim_and_counts_it() {
    let (world, summary) = two_without_keys(OnMissingKey::Process).await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::Unprotected)), (3, 3));
    assert_eq!(world.runs().len(), 3);
    assert_eq!(world.store.stats(&world.scope).await.unwrap().total(), 0);
}

#[tokio::test(start_paused = true)]
async fn on_missing_key_reject_refuses_in_the_brokers_way() {
    let (world, summary) = two_without_keys(OnMissingKey::Reject).await;
    assert_eq!((summary.counters().get(Counter::Rejected), world.broker.rejected()), (3, 3));
    assert!(world.runs().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unprotected_run_that_fails_is_retried_and_dead_lettered_too() {
    let world = World::new();
    world.broker.publish(without_key("one"));
    let worker = world
        .worker()
        .config(|config| config.policies.on_missing_key = OnMissingKey::Process)
        .start(|_| async { Err(HandlerError::retry("broken")) });
    world.empty().await;
    let summary = worker.end().await;
    let attempts: Vec<_> = world.runs().iter().map(|run| run.attempt).collect();
    assert_eq!((summary.dead_lettered(), attempts), (1, vec![1, 2, 3]));
}

#[tokio::test(start_paused = true)]
async fn rule_8_a_partial_composite_key_is_no_key() {
    let world = World::new();
    let tenant = |value: &str| Message::builder(value.to_owned()).header("tenant", "blue");
    world.broker.publish(tenant("x"));
    world.broker.publish(tenant("y"));
    world.broker.publish(tenant("z").header("order", "7"));
    let worker = world
        .worker()
        .with(|worker| {
            let parts = ["tenant", "order"].map(|name| KeySource::Header(name.into()));
            worker.keys = vec![KeySource::Composite(parts.to_vec())];
        })
        .start_ok();
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered(), summary.duplicates()), (1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn c29_two_scopes_process_the_same_message_once_each() {
    let world = World::new();
    world.publish("a");
    let billing = world.worker().start_ok();
    world.empty().await;
    let _ = billing.end().await;
    world.publish_all(["a", "a"]);
    let mail = world.worker().with(|worker| worker.scope = Scope::parse("mail").unwrap()).start_ok();
    world.empty().await;
    let summary = mail.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), world.runs().len()), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_that_may_need_a_dead_letter_destination_and_has_none_is_refused() {
    let world = World::new();
    let build = |letters: bool, exhausted| {
        let (builder, _) = world
            .worker()
            .with(|worker| worker.letters = letters)
            .config(|config| config.policies.on_exhausted = exhausted)
            .pipeline();
        async fn nothing(_: (), _: Message) -> Handled {
            Ok(())
        }
        builder.handler(handler_fn((), nothing)).map(|_| ())
    };
    let refusal = build(false, OnExhausted::DeadLetter).unwrap_err().to_string();
    assert!(refusal.contains("on_exhausted, on_missing_key, on_mismatch say dead-letter"), "{refusal}");
    assert!(refusal.contains("park_exhausted()"), "{refusal}");
    assert!(build(true, OnExhausted::DeadLetter).is_ok());
    assert!(build(false, OnExhausted::Park).is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_ttl_counts_from_completion_and_then_the_key_runs_again() {
    let world = World::new();
    world.publish("a");
    let worker = world.worker().config(|config| config.ttl = 20 * SECOND).start(|_| async {
        tokio::time::sleep(5 * SECOND).await;
        Ok(())
    });
    world.empty().await;
    let completed = world.runs()[0].ended.clone().unwrap().0;
    tokio::time::sleep_until(completed + 19 * SECOND).await;
    world.publish("a");
    world.empty().await;
    assert_eq!(world.runs().len(), 1);
    tokio::time::sleep_until(completed + 21 * SECOND).await;
    world.publish("a");
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), world.runs().len()), (2, 1, 2));
}
