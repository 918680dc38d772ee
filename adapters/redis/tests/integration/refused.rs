//! A pipeline whose permissions are withdrawn while handlers run: no effect happens twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onceward::telemetry::Counter;
use onceward::testing::MemoryBroker;
use onceward::{Handled, KeySource, Message, Pipeline, handler_fn};
use onceward_test_servers::redis::Redis;

use crate::support::{ACL_TO_WORK, ConfigExt, config, open, scope};

const MESSAGES: usize = 16;

type Runs = Arc<Mutex<HashMap<String, u32>>>;

async fn slow(runs: Runs, message: Message) -> Handled {
    let id = String::from_utf8(message.payload().to_vec())?;
    *runs.lock().unwrap().entry(id).or_default() += 1;
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}

/// Runs 16 handlers, calls `take` while they run and `give_back` three seconds later.
async fn no_effect_runs_twice(take: &[&[&str]], give_back: &[&[&str]]) {
    let server = Redis::start();
    let mut user = vec!["ACL", "SETUSER", "worker", "reset", "on", ">pass"];
    user.extend(ACL_TO_WORK.split_whitespace());
    server.cli(&user);
    let store = open(&config(&server.url()).username("worker").password("pass"));
    let (broker, runs) = (MemoryBroker::finite(), Runs::default());
    for number in 0..MESSAGES {
        broker.publish(Message::builder(number.to_string()));
    }
    let pipeline = Pipeline::builder(scope(), broker.consumer(), Arc::new(store))
        .keys([KeySource::PayloadHash])
        .park_exhausted()
        .handler(handler_fn(Arc::clone(&runs), slow))
        .unwrap();
    let running = tokio::spawn(pipeline.run(Default::default()));
    let end = Instant::now() + Duration::from_secs(60);
    while runs.lock().unwrap().len() < MESSAGES {
        assert!(Instant::now() < end, "the handlers do not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    take.iter().for_each(|command| drop(server.cli(command)));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!running.is_finished(), "completions are refused by now");
    give_back.iter().for_each(|command| drop(server.cli(command)));
    let summary = running.await.unwrap().unwrap();
    let runs = runs.lock().unwrap();
    assert!(runs.len() == MESSAGES && runs.values().all(|runs| *runs == 1), "{runs:?}");
    assert_eq!(summary.handled(), MESSAGES as u64);
    assert_eq!(summary.counters().get(Counter::SuspectedDoubleEffects), 0);
    assert!(summary.counters().get(Counter::StoreErrors) > 0, "completions were refused");
}

const KILL: &[&str] = &["CLIENT", "KILL", "USER", "worker"];

#[tokio::test(flavor = "multi_thread")]
async fn scripts_are_forbidden_for_a_moment() {
    let take: &[&str] = &["ACL", "SETUSER", "worker", "-evalsha", "-eval"];
    no_effect_runs_twice(&[take], &[&["ACL", "SETUSER", "worker", "+evalsha", "+eval"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_are_forbidden_for_a_moment() {
    no_effect_runs_twice(
        &[&["ACL", "SETUSER", "worker", "resetkeys"]],
        &[&["ACL", "SETUSER", "worker", "~ow:*"]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_is_another_for_a_moment() {
    let take: &[&str] = &["ACL", "SETUSER", "worker", "resetpass", ">other"];
    no_effect_runs_twice(&[take, KILL], &[&["ACL", "SETUSER", "worker", "resetpass", ">pass"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_is_off_for_a_moment() {
    no_effect_runs_twice(
        &[&["ACL", "SETUSER", "worker", "off"], KILL],
        &[&["ACL", "SETUSER", "worker", "on"]],
    )
    .await;
}
