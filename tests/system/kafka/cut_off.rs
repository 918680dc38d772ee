//! Tests of members that the broker cannot hear: cut off while they work, and stopped while no broker answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onceward_test_servers::kafka::{Kafka, Listener, Security};
use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::order;
use onceward_test_support::process::until;
use serde_json::json;

use super::topic::Topic;
use super::{SESSION_MS, setup};
use crate::pair::{LONG, Waiting, scene};
use crate::stage::each;

/// How long a program may take to end, whatever answers.
const END: Duration = Duration::from_secs(15);

#[test]
fn a_member_that_is_cut_off_writes_its_completions_and_commits_nothing_of_what_it_lost() {
    let listener = Listener::new(Security::Plain);
    let proxy = Proxy::start(listener.address()).expect("a proxy");
    let listener = listener.advertised(proxy.port());
    let broker = Kafka::start_with_listeners(&[listener], None);
    let topic = Topic::create_on(&broker, "cut-off", 2);
    let ids: Vec<_> = (0..40).map(|number| format!("order-{number:02}")).collect();
    // The first four take longer than the broker waits for a member, and than another one takes to have its partitions.
    let ms = |number: usize| if number < 4 { SESSION_MS * 2 } else { 5 };
    let line = |(number, id): (usize, &String)| order(id, &json!({"lane": id, "ms": ms(number)}));
    let lines: Vec<_> = ids.iter().enumerate().map(line).collect();
    topic.publish(&lines[..4]);
    let settings = setup(&topic);
    let scene = scene(&settings);
    scene.write(
        "held.toml",
        settings.set("source.kafka.brokers", vec![listener.bootstrap()]).text().as_bytes(),
    );
    let held = scene.run_file("held.toml");
    let started = || scene.count(Kind::Start).len();
    until("four runs", LONG, || started() == 4);
    for direction in [Direction::ToServer, Direction::ToClient] {
        proxy.set(direction, Flow::Stall);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let watching = threads.spawn(|| topic.watch(&done));
        let other = scene.run();
        topic.publish(&lines[4..]);
        until("the other has worked off all that is new", LONG, || {
            scene.count(Kind::Effect).len() >= ids.len() - 4
        });
        until("no lag", LONG, || topic.is_empty());
        until("it has noticed by itself", LONG, || held.stderr().contains("nothing is committed for them"));
        proxy.heal();
        [&held, &other].iter().for_each(|own| own.terminate());
        let [held, other] = [held, other].map(|own| own.wait_within(END));
        assert!(held.summary("handled") >= 4, "its own completions: {held:#?}");
        // The new owner of the partitions found those in the store.
        assert!(other.summary("duplicates") >= 4, "{other:#?}");
        done.store(true, Ordering::Relaxed);
        assert!(watching.join().expect("offsets that never go back") > 20, "it hardly looked");
    });
    // The other found the completions, or waited for them: nothing ran again.
    assert_eq!(scene.count(Kind::Start), each(&ids, 1));
    assert_eq!(scene.count(Kind::Effect), each(&ids, 1));
}

#[test]
fn a_program_ends_in_time_though_the_broker_does_not_answer() {
    let broker = Kafka::start();
    let (topic, dead) = (Topic::create_on(&broker, "silent", 2), Topic::create_on(&broker, "silent.dead", 1));
    topic.publish(&[order("well", &json!({})), order("ill", &json!({"do": "permanent"}))]);
    let settings = setup(&topic)
        .set("policy.on_exhausted", "dead-letter")
        .set("store.redis.ttl", "8d")
        .set("dead_letter.to", dead.name.as_str());
    let scene = scene(&settings);
    let running = scene.run();
    // The publisher of dead letters has a connection by then, too.
    until("no lag", LONG, || topic.is_empty());
    broker.pause(true);
    running.terminate();
    let ended = running.wait_within(END);
    broker.pause(false);
    // 124: leaving the group was cut off, so that the shutdown stays within its bound.
    assert!(matches!(ended.code(), Some(0 | 1 | 3 | 124)), "{ended:#?}");
}
