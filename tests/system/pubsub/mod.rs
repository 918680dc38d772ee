//! Pub/Sub subscriptions, unordered, ordered and exactly-once, on Google's `pstest`: two programs at once, under kills.
//!
//! A message that a killed program held is redelivered after the shortest ack deadline there is: 10 s.

mod disturbed;
mod letters;
mod outbox;
pub(crate) mod subscription;

use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::pubsub::Pubsub;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::{Chance, kills, size};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{Orders, order};
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::order;
use crate::pair::{
    LEASE, LONG, TIMEOUT, Waiting, nothing_is_lost_and_only_what_was_in_flight_is_doubled, scene, stop,
    the_order_of_each_key_is_kept, under_kills, with_redis, without_source,
};
use crate::postgres::exactly_one_row_under;
use crate::postgres::table::Table;
use crate::stage::{PATIENCE, each, ledger, ledger_of};
use subscription::Subscription;

/// With the shortest ack deadline.
pub(crate) fn setup(subscription: &Subscription<'_>) -> Setup {
    on(subscription, without_source())
}

/// With `subscription` as the source.
fn on(subscription: &Subscription<'_>, setup: Setup) -> Setup {
    let setup = setup
        .set("source.pubsub.subscription", subscription.full_name.as_str())
        .set("source.pubsub.endpoint", subscription.server.endpoint())
        .set("source.pubsub.credentials", "anonymous")
        .set("source.pubsub.ack_deadline", "10s")
        // Killed in turn, the programs leave so many behind at most.
        .set("source.pubsub.max_outstanding_messages", 200)
        .set("pipeline.max_in_flight", 200);
    if subscription.is_ordered() { setup.set("source.pubsub.ordered", true) } else { setup }
}

/// For stories without kills: no lease is lost, however busy the machine, and so no effect may be doubled.
fn patient(setup: Setup) -> Setup {
    setup.set("store.redis.lease", "60s").set("store.redis.timeout", "10s")
}

#[test]
fn two_programs_with_redis_lose_nothing_under_kills() {
    let subscription = Subscription::create("kills-redis", &json!({}));
    let setup = with_redis(setup(&subscription), Redis::shared()).set("scope", "pubsub-kills");
    nothing_is_lost_and_only_what_was_in_flight_is_doubled(&subscription, &setup, 5_000);
}

#[test]
fn two_programs_with_postgres_lose_nothing_under_kills() {
    let subscription = Subscription::create("kills-postgres", &json!({}));
    let table = Table::create(Postgres::shared(), "pubsub_kills");
    let setup = table
        .store(setup(&subscription))
        .set("scope", "pubsub-kills")
        .set("store.postgres.lease", LEASE)
        .set("store.postgres.timeout", TIMEOUT);
    nothing_is_lost_and_only_what_was_in_flight_is_doubled(&subscription, &setup, 5_000);
}

#[test]
fn an_exactly_once_subscription_loses_nothing_under_kills() {
    let subscription =
        Subscription::create("kills-exactly-once", &json!({"enableExactlyOnceDelivery": true}));
    let orders = Orders::with_copies(1_000, 300, &json!({"ms": 1}), &mut Chance::new());
    subscription.publish(&orders.lines);
    let scene = scene(&with_redis(setup(&subscription), Redis::shared()).set("scope", "pubsub-exactly-once"));
    let excused = under_kills(&subscription, &scene, orders.ids.len(), kills(3));
    ledger(&scene, &orders.ids).verify(&excused);
    // A message counts as acked only if its ack was accepted, and then it is not delivered again.
    let delivered = subscription.delivered();
    assert_eq!(delivered.len(), orders.lines.len());
    assert!(delivered.iter().all(|(_, message)| message.acks == 1), "{delivered:#?}");
}

#[test]
fn twenty_kills_at_random_moments_leave_exactly_one_row_for_each_key() {
    let subscription = Subscription::create("kills-statement", &json!({}));
    let table = Table::create(Postgres::shared(), "pubsub_kills_statement");
    let setup = table
        .handler(setup(&subscription))
        .set("source.pubsub.max_outstanding_messages", 50)
        // A server that closes the connection in the middle of a statement costs that attempt.
        .set("retry.max_attempts", 20);
    let (orders, scene) = exactly_one_row_under(kills(20), &subscription, &table, 130, &setup);

    // Once more from the beginning: all are known.
    subscription.publish(&orders.lines);
    let running = scene.run();
    until("an empty subscription", LONG, || subscription.is_empty());
    stop(vec![running]);
    table.assert_exact(&orders.ids, "after the copies");
}

#[test]
fn an_ordered_subscription_keeps_the_order_of_fifty_keys_through_failures_and_kills() {
    let subscription = Subscription::ordered("keys");
    let setup = with_redis(setup(&subscription), Redis::shared()).set("scope", "pubsub-keys");
    the_order_of_each_key_is_kept(&subscription, &setup, 50, 20);
}

#[test]
fn a_key_whose_first_message_fails_holds_no_other_key() {
    const LONG: usize = 6;
    let subscription = Subscription::ordered("undisturbed");
    let (mut lines, produced) = order::lines(50, LONG);
    lines[0] = order("0-000", &json!({"lane": 0, "do": "fail"}));
    subscription.publish(&lines);
    let setup = patient(with_redis(setup(&subscription), Redis::shared()))
        .set("scope", "pubsub-undisturbed")
        .set("retry.max_attempts", 10_000)
        // The first attempts that fail in each key would pass for an unavailable handler.
        .set("pipeline.breaker_keys", 0);
    let scene = scene(&setup);
    let running = vec![scene.run(), scene.run()];
    let others = produced.len() - LONG;
    until("the effects of all other keys", PATIENCE, || scene.count(Kind::Effect).len() >= others);
    stop(running);
    let ledger = ledger_of(&scene, produced);
    assert!(ledger.effects.iter().all(|effect| !effect.key.starts_with("0-")), "the failing key went on");
    assert_eq!((ledger.doubled(), ledger.out_of_order()), (vec![], vec![]));
    assert!(!subscription.is_empty(), "the failing key is gone");
}

#[test]
fn a_handler_of_several_ack_deadlines_runs_once() {
    let subscription = Subscription::create("long", &json!({}));
    // Six ack deadlines of 10 s take a minute: with SLOW=1.
    let ms = size(25_000, 61_000);
    let orders = Orders::with_copies(4, 1, &json!({"ms": ms}), &mut Chance::new());
    subscription.publish(&orders.lines);
    let setup = patient(with_redis(setup(&subscription), Redis::shared()))
        .set("scope", "pubsub-long")
        .set("handler.worker.timeout", "120s");
    let scene = scene(&setup);
    let running = vec![scene.run(), scene.run()];
    until("all effects", LONG, || scene.count(Kind::Effect).len() == orders.ids.len());
    until("an empty subscription", LONG, || subscription.is_empty());
    stop(running);
    assert_eq!(scene.count(Kind::Start), each(&orders.ids, 1));
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
    let delivered = subscription.delivered();
    assert!(delivered.iter().all(|(_, message)| message.deliveries == 1), "{delivered:#?}");
    assert!(delivered.iter().any(|(_, message)| message.extensions > 0), "{delivered:#?}");
}

#[test]
fn what_is_published_to_a_topic_arrives_in_the_order_of_its_keys() {
    let from = Subscription::ordered("bridge-from");
    let to = Subscription::ordered("bridge-to");
    let (lines, produced) = order::lines(10, 40);
    from.publish(&lines);
    let bridge = with_redis(setup(&from), Redis::shared())
        .set("scope", "pubsub-bridge")
        .without("handler.worker")
        .set("handler.publish.pubsub.topic", to.topic.as_str())
        .set("handler.publish.pubsub.endpoint", Pubsub::shared().endpoint())
        .set("handler.publish.pubsub.credentials", "anonymous");
    let first = scene(&bridge);
    let mut running = vec![first.run(), first.run()];
    for kill in 0..kills(3) {
        until("messages on the other side", LONG, || to.depth().0 >= 80 * (kill as u64 + 1));
        assert_eq!(running.remove(0).kill().signal(), Some(9));
        running.push(first.run());
    }
    until("an empty subscription", LONG, || from.is_empty());
    stop(running);
    // Copies after a kill are possible; the consumer behind recognises them.
    let second = scene(&patient(with_redis(setup(&to), Redis::shared())).set("scope", "pubsub-behind"));
    let running = second.run();
    until("an empty subscription", LONG, || to.is_empty());
    stop(vec![running]);
    let ledger = ledger_of(&second, produced);
    assert_eq!((ledger.lost(), ledger.doubled(), ledger.out_of_order()), (vec![], vec![], vec![]));
}
