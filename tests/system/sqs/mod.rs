//! SQS queues, standard and FIFO, on an SQS-compatible server with SQS's strict limits: two programs at once, under kills.

mod outbox;
pub(crate) mod queue;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::{Chance, kills};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::{self, Orders, order};
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;
use serde_json::json;

use crate::order;
use crate::pair::{
    LEASE, LONG, TIMEOUT, Waiting, nothing_is_lost_and_only_what_was_in_flight_is_doubled, scene, stop,
    the_order_of_each_key_is_kept, with_redis, without_source,
};
use crate::postgres::table::Table;
use crate::stage::{PATIENCE, each, ledger_of};
use queue::Queue;
pub(crate) use queue::REGION;

/// A short visibility timeout: what a killed program held is redelivered after it.
pub(crate) fn setup(queue: &Queue) -> Setup {
    without_source()
        .set("source.sqs.queue_url", queue.url.as_str())
        .set("source.sqs.region", REGION)
        .set("source.sqs.endpoint", ElasticMq::shared().endpoint())
        .set("source.sqs.visibility", "2s")
        // Killed in turn, the programs leave so many invisible at most.
        .set("pipeline.max_in_flight", 200)
        .set("pipeline.max_batch", 100)
}

/// For stories without kills: no lease is lost, however busy the machine, and so no effect may be doubled.
fn patient(setup: Setup) -> Setup {
    setup.set("store.redis.lease", "60s").set("store.redis.timeout", "10s")
}

#[test]
fn two_programs_with_redis_lose_nothing_under_kills() {
    let queue = Queue::create("kills-redis", &[]);
    let setup = with_redis(setup(&queue), Redis::shared()).set("scope", "sqs-kills");
    nothing_is_lost_and_only_what_was_in_flight_is_doubled(&queue, &setup, 5_000);
}

#[test]
fn two_programs_with_postgres_lose_nothing_under_kills() {
    let queue = Queue::create("kills-postgres", &[]);
    let table = Table::create(Postgres::shared(), "sqs_kills");
    let setup = table
        .store(setup(&queue))
        .set("scope", "sqs-kills")
        .set("store.postgres.lease", LEASE)
        .set("store.postgres.timeout", TIMEOUT);
    nothing_is_lost_and_only_what_was_in_flight_is_doubled(&queue, &setup, 5_000);
}

#[test]
fn a_fifo_queue_keeps_the_order_of_fifty_groups_through_failures_and_kills() {
    let queue = Queue::create("groups.fifo", &[]);
    let setup = with_redis(setup(&queue), Redis::shared()).set("scope", "sqs-groups");
    the_order_of_each_key_is_kept(&queue, &setup, 50, 20);
}

#[test]
fn a_group_whose_first_message_fails_holds_no_other_group() {
    const LONG: usize = 6;
    let queue = Queue::create("undisturbed.fifo", &[]);
    let (mut lines, produced) = order::lines(50, LONG);
    lines[0] = order("0-000", &json!({"lane": 0, "do": "fail"}));
    queue.publish(&lines);
    let setup = patient(with_redis(setup(&queue), Redis::shared()))
        .set("scope", "sqs-undisturbed")
        .set("retry.max_attempts", 10_000);
    let scene = scene(&setup);
    let running = vec![scene.run(), scene.run()];
    let others = produced.len() - LONG;
    until("the effects of all other groups", PATIENCE, || scene.count(Kind::Effect).len() >= others);
    stop(running);
    let ledger = ledger_of(&scene, produced);
    assert!(ledger.effects.iter().all(|effect| !effect.key.starts_with("0-")), "the failing group went on");
    assert_eq!((ledger.doubled(), ledger.out_of_order()), (vec![], vec![]));
    assert!(!queue.is_empty(), "the failing group is gone");
}

#[test]
fn a_handler_of_ten_times_the_visibility_runs_once() {
    let queue = Queue::create("long", &[]);
    let orders = Orders::with_copies(4, 1, &json!({"ms": 30_000}), &mut Chance::new());
    queue.publish(&orders.lines);
    let setup = patient(with_redis(setup(&queue), Redis::shared()))
        .set("scope", "sqs-long")
        .set("handler.worker.timeout", "60s")
        .set("source.sqs.visibility", "3s");
    let scene = scene(&setup);
    let running = vec![scene.run(), scene.run()];
    until("all effects", PATIENCE, || scene.count(Kind::Effect).len() == orders.ids.len());
    until("an empty queue", PATIENCE, || queue.is_empty());
    stop(running);
    assert_eq!(scene.count(Kind::Start), each(&orders.ids, 1));
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

#[test]
fn what_is_published_to_a_fifo_queue_arrives_in_the_order_of_its_groups_and_once() {
    let (from, to) = (Queue::create("bridge-from.fifo", &[]), Queue::create("bridge-to.fifo", &[]));
    let (lines, produced) = order::lines(10, 40);
    from.publish(&lines);
    let bridge = with_redis(setup(&from), Redis::shared())
        .set("scope", "sqs-bridge")
        .without("handler.worker")
        .set("handler.publish.sqs.queue_url", to.url.as_str())
        .set("handler.publish.sqs.region", REGION)
        .set("handler.publish.sqs.endpoint", ElasticMq::shared().endpoint());
    let first = scene(&bridge);
    let mut running = vec![first.run(), first.run()];
    for kill in 0..kills(3) {
        until("messages on the other side", LONG, || to.depth().0 >= 80 * (kill as u64 + 1));
        assert_eq!(running.remove(0).kill().signal(), Some(9));
        running.push(first.run());
    }
    until("an empty queue", LONG, || from.is_empty());
    stop(running);
    // A confirm that a kill swallowed is repeated under the same deduplication id, and so is no second message.
    assert_eq!(to.depth(), (produced.len() as u64, 0));
    let second = scene(&patient(with_redis(setup(&to), Redis::shared())).set("scope", "sqs-behind"));
    let running = second.run();
    until("an empty queue", LONG, || to.is_empty());
    stop(vec![running]);
    let ledger = ledger_of(&second, produced);
    assert_eq!((ledger.lost(), ledger.doubled(), ledger.out_of_order()), (vec![], vec![], vec![]));
}

#[test]
fn dead_letters_go_to_a_queue_and_check_and_status_see_both() {
    let (spare, dead) = (Queue::create("parts-spare", &[]), Queue::create("parts-dead", &[]));
    let policy = json!({"deadLetterTargetArn": spare.arn(), "maxReceiveCount": 3}).to_string();
    let attributes =
        [(Attribute::RedrivePolicy, policy.as_str()), (Attribute::MessageRetentionPeriod, "345600")];
    let queue = Queue::create("parts", &attributes);
    let lines = [orders::order("well", &json!({})), orders::order("ill", &json!({"do": "permanent"}))];
    queue.publish(&lines);
    let setup = with_redis(setup(&queue), Redis::shared())
        .set("scope", "sqs-parts")
        .set("policy.on_exhausted", "dead-letter")
        .set("dead_letter.to", dead.url.as_str());
    let scene = scene(&setup);
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    for said in [
        "/parts answers, 2 messages",
        "after 3 receives they are moved to",
        "the broker gives a message up after 3 deliveries",
        "parts-dead is there, 0 dead letters",
        "source.sqs.visibility: is shorter than handler.worker.timeout",
    ] {
        assert!(checked.stdout.contains(said), "{said}: {checked:#?}");
    }

    let ended = scene.execute(&["run", "onceward.toml", "--until-empty"]);
    assert_eq!((ended.code(), ended.summary("handled")), (Some(3), 1), "{ended:#?}");
    assert_eq!(ended.summary("dead-lettered"), 1, "{ended:#?}");
    assert_eq!((queue.depth(), dead.depth(), spare.depth()), ((0, 0), (1, 0), (0, 0)));
    let status = scene.execute(&["status", "onceward.toml"]);
    assert!(status.stdout.contains("backlog      0 messages"), "{status:#?}");
    assert!(
        status.stdout.contains("dead letters 1 in") && status.stdout.contains("parts-dead"),
        "{status:#?}"
    );

    scene.configure(&setup.clone().set("dead_letter.to", "orders.dead"));
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("it is the URL of a queue"), "{checked:#?}");

    let nowhere = format!("{}-nowhere", queue.url);
    scene.configure(&setup.clone().set("source.sqs.queue_url", nowhere.as_str()));
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("no such queue"), "{checked:#?}");
}
