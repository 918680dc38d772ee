//! Dead letters of a run, as far as a broker can count them, and what a collector receives of it.

use onceward_test_servers::otlp::Collector;
use onceward_test_servers::ports::free_port;
use onceward_test_support::orders::order;
use onceward_test_support::process::until;
use serde_json::json;

use super::scrape::Watched;
use crate::letters::letters_to;
use crate::pair::{Waiting, scene};
use crate::sqs;
use crate::sqs::queue::Queue;
use crate::stage::PATIENCE;

#[test]
fn letters_in_sqs_are_counted_and_their_age_is_left_out() {
    let [queue, dead] = ["counted", "counted-dead"].map(|name| Queue::create(name, &[]));
    let (collector, port) = (Collector::start(), free_port().expect("a port"));
    let setup = letters_to(sqs::setup(&queue), &dead.url)
        .set("telemetry.listen", format!("127.0.0.1:{port}"))
        .set("telemetry.otlp", collector.url());
    let scene = scene(&setup);
    let mut command = scene.command(&["run", "onceward.toml"]);
    let running = scene.start(command.env("OTEL_METRIC_EXPORT_INTERVAL", "500"));
    let watched = Watched::start(port);
    queue.publish(&[1, 2].map(|number| order(&format!("bad-{number}"), &json!({"do": "permanent"}))));
    until("two letters", PATIENCE, || watched.value("dead_letter_depth") == Some(2.0));
    assert_eq!(watched.value("dead_letter_oldest_seconds"), None);
    until("the same in the collector", PATIENCE, || {
        let points = collector.points();
        let last = points.iter().rev().find(|point| point.name == "onceward_dead_letter_depth");
        last.is_some_and(|point| point.value == 2.0)
    });
    running.kill();
}
