//! Events that take more to be caused: the stories of metrics that seldom change.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use onceward::telemetry::MetricsObserver;
use onceward::{Handled, KeySource, Message, Outgoing, Pipeline, Scope, handler_fn};
use onceward_postgres::{PgConfig, PgStore};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer};
use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::rabbitmq::RabbitMq;
use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::order;
use onceward_test_support::process::until;
use onceward_test_support::scene::joined;
use serde_json::json;
use sqlx::Connection;
use tokio_util::sync::CancellationToken;

use super::events::{end, line, start, start_in};
use crate::pair::{Waiting, with_redis, without_source};
use crate::postgres::table::Table;
use crate::rabbitmq;
use crate::rabbitmq::queue::{Queue as RabbitQueue, runtime};
use crate::sqs;
use crate::sqs::queue::Queue as SqsQueue;
use crate::stage::{PATIENCE, worker};

/// Replies to a login that may not publish them, then to a queue, then to none.
pub(super) fn replies() -> BTreeSet<String> {
    let broker = RabbitMq::shared();
    let [queue, replies, gone] =
        ["requests", "replies", "gone"].map(|name| RabbitQueue::declare(&format!("measured-{name}"), &[]));
    gone.delete();
    broker.ctl(&["add_user", "replier", "password"]);
    // The default exchange is no such name.
    broker.ctl(&["set_permissions", "replier", ".*", "^measured-", ".*"]);
    let setup = with_redis(rabbitmq::on(&queue, without_source()), Redis::shared())
        .set("source.rabbitmq.url", format!("amqp://replier:password@127.0.0.1:{}/%2f", broker.port()))
        .set("scope", "measured-replies")
        .set("policy.on_completed", "replay-result");
    let (_scene, running, mut watched) = start(setup);
    let ask = |id: &str, to: &RabbitQueue<'_>| {
        let headers = vec![("amqp-reply-to".to_owned(), to.name.clone().into())];
        queue.publish_all(&[Outgoing { headers, ..queue.message(&order(id, &json!({}))) }]);
    };
    ask("refused", &replies);
    watched.see(&["reply_errors_total"]);
    broker.ctl(&["set_permissions", "replier", ".*", ".*", ".*"]);
    watched.see(&["replies_total"]);
    ask("lost", &gone);
    watched.see(&["replies_undeliverable_total"]);
    end(running, &watched)
}

/// Two transactions that lock the same two things in opposite order, once each holds its first; and a cleaner that has stopped in
/// the middle of its work.
pub(super) fn transactions() -> BTreeSet<String> {
    let (server, queue) = (Postgres::shared(), RabbitQueue::declare("measured-transactions", &[]));
    let table = Table::create(server, "measured");
    table.sql(
        "CREATE TABLE @.met (id bigint NOT NULL); \
         CREATE FUNCTION @.meet(own bigint, other bigint) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
           PERFORM pg_advisory_xact_lock(own); \
           WHILE NOT EXISTS (SELECT FROM @.met WHERE id = other) AND NOT EXISTS (SELECT FROM pg_locks \
             WHERE locktype = 'advisory' AND classid = 0 AND objid::bigint = other AND granted) \
           LOOP PERFORM pg_sleep(0.01); END LOOP; \
           PERFORM pg_advisory_xact_lock(other); \
           INSERT INTO @.met VALUES (own); \
         END $$",
    );
    let meet = "SELECT measured.meet(($1::jsonb->>'own')::bigint, ($1::jsonb->>'other')::bigint)";
    let setup = rabbitmq::on(&queue, table.handler(without_source()))
        .set("handler.sql.statement", meet)
        .set("store.postgres.ttl", "2s");
    let (_scene, running, mut watched) = start(setup);
    let runtime = runtime();
    // The turn of the one worker that removes what has expired.
    let mut cleaner = runtime.block_on(async {
        let mut cleaner = sqlx::PgConnection::connect(&server.url("postgres")).await.expect("a connection");
        let turn = "BEGIN; SELECT 1 FROM measured.meta WHERE name = 'purge' FOR UPDATE";
        sqlx::raw_sql(turn).execute(&mut cleaner).await.expect("the turn");
        cleaner
    });
    let [one, other] = [811_001, 811_002];
    queue.publish(&[
        order("one", &json!({"own": one, "other": other})),
        order("other", &json!({"own": other, "other": one})),
    ]);
    watched.see(&["conflicts_total"]);
    until("both are done", PATIENCE, || table.sql("SELECT count(*) FROM @.met") == "2");
    watched.see(&["expiry_lag_seconds"]);
    runtime.block_on(async {
        sqlx::raw_sql("ROLLBACK").execute(&mut cleaner).await.expect("the end of the turn");
    });
    until("they are removed", PATIENCE, || watched.value("expiry_lag_seconds") == Some(0.0));
    end(running, &watched)
}

/// A file's lines that cannot be handed out, since their place cannot be saved.
pub(super) fn file() -> BTreeSet<String> {
    let mut redis = Redis::start();
    let setup = with_redis(worker(), &redis).set("source.file.follow", true);
    let early = joined(&line("early", &json!({})));
    let (scene, running, mut watched) = start_in(setup, |scene| scene.write("orders.ndjson", &early));
    until("nothing is in flight", PATIENCE, || watched.value("handled_total") == Some(1.0));
    redis.kill();
    let mut input = OpenOptions::new().append(true).open(scene.path("orders.ndjson")).expect("the input");
    input.write_all(&joined(&line("late", &json!({})))).expect("a line");
    watched.see(&["receive_errors_total"]);
    redis.start_again();
    until("its effect", PATIENCE, || scene.count(Kind::Effect).contains_key("late"));
    end(running, &watched)
}

/// A broker that cannot be reached when a message is to be deleted.
pub(super) fn deletes() -> BTreeSet<String> {
    let proxy = Proxy::start(ElasticMq::shared().address()).expect("a proxy");
    let queue = SqsQueue::create("measured-deletes", &[]);
    let setup = sqs::setup(&queue)
        .set("source.sqs.endpoint", format!("http://{}", proxy.address()))
        .set("source.sqs.visibility", "60s");
    let (scene, running, mut watched) = start(setup);
    // Longer than it takes to see that it runs, beside the other stories.
    queue.publish(&line("slow", &json!({"ms": 3_000})));
    until("its run", PATIENCE, || scene.count(Kind::Start).contains_key("slow"));
    proxy.refuse();
    watched.see(&["settle_errors_total"]);
    proxy.heal();
    until("an empty queue", PATIENCE, || queue.is_empty());
    end(running, &watched)
}

/// A handler of a library's user, which the program has none of: it panics once.
pub(super) fn library() -> BTreeSet<String> {
    let (server, queue) = (Postgres::shared(), RabbitQueue::declare("measured-library", &[]));
    let recorder = DebuggingRecorder::new();
    let scope = Scope::parse("measured-library").expect("a scope");
    let observer = metrics::with_local_recorder(&recorder, || MetricsObserver::new(&scope));
    let runtime = runtime();
    let shutdown = CancellationToken::new();
    let pipeline = runtime.block_on(async {
        let source = RabbitmqConfig::new(queue.broker.url(), &queue.name);
        let source = RabbitmqConsumer::open(source).await.expect("a source");
        let mut database = PgConfig::new(server.url("postgres"));
        "measured_library".clone_into(&mut database.options.schema);
        let store = PgStore::open(database).await.expect("a store");
        Pipeline::builder(scope, source, Arc::new(store))
            .keys([KeySource::PayloadHash])
            .park_exhausted()
            .observer(Arc::new(observer))
            .handler(handler_fn(Arc::new(AtomicBool::new(false)), panic_once))
            .expect("a pipeline")
    });
    let run = runtime.spawn(pipeline.run(shutdown.clone()));
    queue.publish(&line("one", &json!({})));
    let snapshots = recorder.snapshotter();
    let mut changed = BTreeSet::new();
    until("the panic, and its success", PATIENCE, || {
        changed.extend(counted(&snapshots));
        ["panics_total", "handled_total"].iter().all(|name| changed.contains(*name))
    });
    shutdown.cancel();
    let summary = runtime.block_on(run).expect("it ends").expect("without an error");
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 0));
    changed
}

async fn panic_once(has_run: Arc<AtomicBool>, _: Message) -> Handled {
    assert!(has_run.swap(true, Ordering::SeqCst), "as the test asks");
    Ok(())
}

/// The counters that are above zero.
fn counted(snapshots: &Snapshotter) -> Vec<String> {
    let counted = snapshots.snapshot().into_vec().into_iter();
    let above_zero =
        counted.filter(|(_, _, _, value)| matches!(value, DebugValue::Counter(count) if *count > 0));
    let name = |name: &str| name.strip_prefix("onceward_").unwrap_or(name).to_owned();
    above_zero.map(|(key, ..)| name(key.key().name())).collect()
}
