//! `docs/reference/metrics.md`, from what a run and a relay answer to a scrape.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use onceward::telemetry::Counter;
use onceward_test_servers::rabbitmq::RabbitMq;
use rustix::process::Signal;

use super::scene::{Running, Scene, until};
use super::{GENERATED, cell, compare};

/// Type and help of each metric.
pub(super) type Metrics = BTreeMap<String, (String, String)>;

/// Metrics that a file source does not have, or only once there is a dead letter.
const OF_OTHERS: [(&str, &str, &str); 4] = [
    (
        "onceward_dead_letter_depth",
        "gauge",
        "Dead letters in their destination at the last observation, also those of other scopes. Absent where it is unknown.",
    ),
    (
        "onceward_dead_letter_oldest_seconds",
        "gauge",
        "Age in seconds of the oldest dead letter that was in the destination at the last observation (Kafka, files).",
    ),
    (
        "onceward_source_lag",
        "gauge",
        "Messages that wait in the broker, when that was last looked at: consumer lag or queue depth.",
    ),
    ("onceward_source_assigned_partitions", "gauge", "Partitions that are assigned to this process (Kafka)."),
];

fn scrape(running: &Running) -> String {
    let address = until("the address", || {
        let log = running.stderr();
        let line = log.lines().find(|line| line.contains("/health/ready"))?;
        line.split("address=").nth(1).map(|rest| rest.split_whitespace().next().unwrap().to_owned())
    });
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn metrics(text: &str) -> Metrics {
    let mut found = Metrics::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        let (Some("#"), Some(what), Some(name), Some(rest)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let (kind, help) = found.entry(name.to_owned()).or_default();
        match what {
            "TYPE" => *kind = rest.to_owned(),
            _ => *help = rest.to_owned(),
        }
    }
    found
}

/// Starts `words`, scrapes until `last` is present, and stops it.
fn metrics_of(scene: &Scene, words: &str, last: &str) -> Metrics {
    let running = scene.start(scene.command(words));
    let text = until(last, || Some(scrape(&running)).filter(|text| text.contains(last)));
    running.signal(Signal::TERM);
    running.end();
    metrics(&text)
}

fn table(metrics: &Metrics, page: &mut String) {
    page.push_str("| metric | type | |\n|---|---|---|\n");
    for (name, (kind, help)) in metrics {
        let suffix = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        writeln!(page, "| `{name}{suffix}` | {kind} | {} |", cell(help)).unwrap();
    }
}

#[test]
fn metrics_are_current() {
    let broker = RabbitMq::shared();
    let tables = "[source.file]\npath = 'orders.ndjson'\nfollow = true\n[store.sqlite]\npath = 'o.db'\n[handler.exec]\n\
                  command = ['true']\n[telemetry]\nlisten = '127.0.0.1:0'\notlp = 'http://127.0.0.1:9'\n\
";
    let scene = Scene::new(&format!("{tables}[outbox.rabbitmq]\nurl = '{}'\n", broker.url()));
    scene.write("orders.ndjson", "{\"id\":1}\n");
    let mut run = metrics_of(&scene, "run @", "outcome=\"handled\"} 1");
    for (name, kind, help) in OF_OTHERS {
        run.insert(name.to_owned(), (kind.to_owned(), help.to_owned()));
    }
    for counter in Counter::ALL {
        assert!(run.contains_key(&format!("onceward_{}", counter.name())), "{counter:?} is not served");
    }
    let relay = metrics_of(&scene, "outbox relay @", "onceward_outbox_waiting");

    super::rules::check_names([&run, &relay]);

    let mut page = format!(
        "{GENERATED}# Metrics\n\n`telemetry.listen` serves them as `/metrics`, in the OpenMetrics text format. Metrics whose names begin with\n\
         `onceward_` have the label `scope`, and some have further ones:\n\n\
         | metric | labels |\n|---|---|\n\
         | `onceward_keys_total` | `from`: the entry of `[key] from` |\n\
         | `onceward_deliveries_total` | `source`: the adapter; `origin`: the queue, topic or file; `outcome`: how the delivery ended |\n\
         | `onceward_dead_letters_total` | `reason` |\n\
         | `onceward_export_failures_total` | `signal`: `traces`, `metrics` or `logs` |\n\
         | `onceward_handler_seconds` | `outcome`: `succeeded` or `failed` |\n\
         | `onceward_intake_paused` | `reason`: `store`, `handler`, `in_flight`, `bytes`, `waiting` or `rate` |\n\n\
         No label has a value that a message brings, apart from its queue, topic or file. What to do when one of them grows is in\n\
         [Operations](../operations.md#alarms-worth-having).\n\n## A run\n\n"
    );
    table(&run, &mut page);
    let ends: Vec<_> =
        onceward::telemetry::Counters::ENDS.iter().map(|counter| format!("`{}`", counter.name())).collect();
    writeln!(
        page,
        "\nEach delivery that was received ends in exactly one of {}: once a pipeline has ended,\ntheir sum is `received`.\n\n## A relay of \
         the outbox\n",
        ends.join(", ")
    )
    .unwrap();
    table(&relay, &mut page);
    compare("reference/metrics.md", &page);
}
