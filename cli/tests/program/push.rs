//! Metrics and log lines of a run and a relay, read back by a collector in this process.

use onceward_test_servers::otlp::{Collector, Point};
use rustix::process::Signal;

use super::scene::{Ended, ORDERS, Scene, until};
use super::telemetry::{address, request};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// One message that succeeds, with a trace context, a copy of it, and one that fails for good.
fn orders(telemetry: &str) -> Scene {
    let scene = Scene::new(&format!(
        "[source.file]\npath = 'orders.ndjson'\nformat = 'envelope'\n[store.memory]\n[retry]\nmax_attempts = 1\n\
         [handler.exec]\ncommand = ['sh', '-c', 'grep -vq bad']\n[telemetry]\n{telemetry}\n"
    ));
    scene.write("orders.ndjson", &["a", "a", "bad"].map(message).concat());
    scene
}

fn message(id: &str) -> String {
    let payload = format!("{{\\\"id\\\":\\\"{id}\\\"}}");
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    format!("{{\"payload\":\"{payload}\",\"headers\":{{\"traceparent\":\"{parent}\"}}}}\n")
}

fn run(scene: &Scene, variables: &[(&str, &str)]) -> Ended {
    let mut command = scene.command("run @");
    command.envs(variables.iter().copied());
    scene.start(command).end()
}

/// The last point of this name, with this attribute if its name is not empty.
fn last(points: &[Point], name: &str, (key, value): (&str, &str)) -> Point {
    let is_it = |point: &&Point| {
        point.name == name && (key.is_empty() || point.attribute(key).as_deref() == Some(value))
    };
    points.iter().rev().find(is_it).unwrap_or_else(|| panic!("{name} {key}={value}: {points:#?}")).clone()
}

const ANY: (&str, &str) = ("", "");

#[test]
fn the_metrics_of_a_run_reach_the_collector_under_the_names_of_a_scrape() {
    let collector = Collector::start();
    let scene = orders(&format!("otlp = '{}'", collector.url()));
    let ended = run(&scene, &[("OTEL_METRIC_EXPORT_INTERVAL", "3600000")]);
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    let points = collector.points();
    for (name, attribute, value) in [
        ("onceward_received_total", ANY, 3.0),
        ("onceward_handled_total", ANY, 1.0),
        ("onceward_deliveries_total", ("outcome", "duplicates"), 1.0),
        ("onceward_dead_letters_total", ("reason", "attempts-exhausted"), 1.0),
        ("onceward_store_up", ANY, 1.0),
        ("onceward_build_info", ("version", onceward::VERSION), 1.0),
    ] {
        let point = last(&points, name, attribute);
        let kind = if name.ends_with("_total") { "sum" } else { "gauge" };
        assert_eq!((point.value, point.kind), (value, kind), "{point:?}");
        assert_eq!((&*point.service, point.instance.len()), ("onceward", 36), "{point:?}");
        assert_eq!(point.attribute("scope").as_deref(), Some("billing"), "{point:?}");
    }
    let runs = last(&points, "onceward_handler_seconds", ("outcome", "succeeded"));
    assert_eq!((runs.kind, runs.count, &*runs.unit), ("histogram", 1, "s"), "{runs:?}");
    assert_eq!(runs.exemplars, [TRACE], "{runs:?}");
    assert!(points.iter().any(|point| point.name == "process_cpu_seconds_total"), "{points:#?}");
    assert!(!collector.spans().is_empty() && collector.lines().is_empty());
}

#[test]
fn variables_decide_what_is_exported_and_where() {
    let [all, own] = [Collector::start(), Collector::start()];
    let metrics_elsewhere = format!("{}/here", own.url());
    let scene = orders("log = 'json'");
    let ended = run(
        &scene,
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &all.url()),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &metrics_elsewhere),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-key=a%20b"),
            ("OTEL_TRACES_EXPORTER", "none"),
            ("OTEL_LOGS_EXPORTER", "otlp"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=billing,service.instance.id=seven"),
        ],
    );
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    assert!(all.spans().is_empty() && all.points().is_empty());
    let pushed = own.requests();
    assert!(!pushed.is_empty());
    for request in pushed {
        assert!(request.head.starts_with("POST /here HTTP/1.1\n"), "{}", request.head);
        assert!(request.head.contains("x-key: a b\n"), "{}", request.head);
        let text = String::from_utf8_lossy(&request.body).into_owned();
        assert!(text.contains("billing") && text.contains("seven"), "{text}");
    }
    let lines = all.lines();
    let started = lines.iter().find(|line| line.body == "pipeline started").expect("a line");
    assert_eq!((&*started.severity, &*started.service), ("INFO", "billing"), "{started:?}");
    assert_eq!(started.attribute("guarantee").as_deref(), Some("deduplicated"), "{started:?}");
}

/// Each failure is a line, and a line that were exported would be another failure.
#[test]
fn lines_about_the_export_are_not_exported() {
    let (refusing, takes) = (Collector::with_status("401 Unauthorized"), Collector::start());
    let scene = orders("log = 'text'");
    let ended = run(
        &scene,
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &refusing.url()),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", &format!("{}/v1/logs", takes.url())),
            ("ONCEWARD_LOG", "trace"),
        ],
    );
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    for things in ["spans", "metrics"] {
        assert!(ended.stderr.contains(&format!("{things} not exported")), "{ended:?}");
    }
    assert!(ended.stderr.contains("hyper"), "the libraries log what they send");
    let lines = takes.lines();
    assert!(
        lines.iter().any(|line| line.severity == "DEBUG" && line.target.starts_with("onceward")),
        "{lines:#?}"
    );
    for line in lines {
        assert!(!line.body.contains("not exported"), "{line:?}");
        let is_ours = line.target.starts_with("onceward");
        assert!(is_ours || !matches!(&*line.severity, "DEBUG" | "TRACE"), "{line:?}");
    }
}

#[test]
fn exemplars_name_the_traces_of_a_slow_run_a_long_wait_and_a_duplicate() {
    let collector = Collector::start();
    let scene = orders("listen = '127.0.0.1:0'");
    let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
    scene.write("onceward.toml", &config.replace("format =", "follow = true\nformat ="));
    let mut command = scene.command("run @");
    command.env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", collector.url()));
    let running = scene.start(command);
    let address = address(&running);
    let text = until("the exemplar", || {
        let text = request(&address, "GET /metrics").1;
        text.contains("outcome=\"dead_lettered\"} 1").then_some(text)
    });
    running.signal(Signal::TERM);
    running.end();
    let exemplars: Vec<_> = text.lines().filter(|line| line.contains(" # {")).collect();
    for outcome in ["succeeded", "failed"] {
        let found = exemplars.iter().find(|line| {
            line.starts_with(&format!(
                "onceward_handler_seconds_bucket{{scope=\"billing\",outcome=\"{outcome}\""
            ))
        });
        let ids = format!("# {{trace_id=\"{TRACE}\",span_id=\"");
        assert!(found.is_some_and(|line| line.contains(&ids)), "{outcome}: {exemplars:#?}");
    }
    for name in ["queue_wait_seconds", "duplicate_age_seconds"] {
        let found = exemplars.iter().find(|line| line.starts_with(&format!("onceward_{name}_bucket")));
        assert!(found.is_some_and(|line| line.contains(TRACE)), "{name}: {exemplars:#?}");
    }
    assert!(collector.points().is_empty(), "only traces have a collector");
}

#[test]
fn a_scrape_shows_the_dead_letters_and_the_age_of_the_oldest() {
    let scene = orders("listen = '127.0.0.1:0'");
    let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
    let config = config
        .replace("format =", "follow = true\nformat =")
        .replace("[store.memory]", "[store.sqlite]\npath = 'o.db'");
    scene.write("onceward.toml", &config);
    let running = scene.start(scene.command("run @"));
    let address = address(&running);
    let value = |name: &str| {
        let text = request(&address, "GET /metrics").1;
        let start = format!("onceward_dead_letter_{name}{{scope=\"billing\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)?.parse::<u64>().ok())
    };
    until("the letter", || value("depth").filter(|depth| *depth == 1));
    assert!(value("oldest_seconds").is_some_and(|age| age < 600));
    let purged = scene.execute("dlq purge @ --yes --why fixed");
    assert_eq!(purged.code(), Some(0), "{purged:?}");
    scene.append("orders.ndjson", &["bad-2", "bad-3"].map(message).concat());
    until("the other letters alone", || value("depth").filter(|depth| *depth == 2));
    running.signal(Signal::TERM);
    assert!(!running.end().stderr.contains("dead letters not counted"));
}

#[tokio::test]
#[cfg(feature = "sqlite")]
async fn a_gauge_of_letters_that_cannot_be_read_is_left_out() {
    use sqlx::{Connection, Executor, SqliteConnection};
    let scene = orders("listen = '127.0.0.1:0'");
    let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
    let config = config.replace("[store.memory]", "[store.sqlite]\npath = 'o.db'");
    scene.write("onceward.toml", &config);
    assert_eq!(scene.execute("run @").code(), Some(3));
    scene.write("onceward.toml", &config.replace("format =", "follow = true\nformat ="));
    let url = format!("sqlite:{}", scene.path("o.db").display());
    let mut conn = SqliteConnection::connect(&url).await.unwrap();
    // Its column alone: the start checks that the table is there.
    conn.execute("alter table onceward_audit rename column settles to settles_away").await.unwrap();
    let running = scene.start(scene.command("run @"));
    let address = address(&running);
    until("the observation", || running.stderr().contains("dead letters not counted").then_some(()));
    let text = request(&address, "GET /metrics").1;
    assert!(text.contains("onceward_store_up") && !text.contains("onceward_dead_letter_depth"), "{text}");
}

#[test]
fn another_temporality_is_refused_only_where_metrics_are_asked_for_by_name() {
    let collector = Collector::start();
    let scene = orders(&format!("otlp = '{}'", collector.url()));
    let temporality = ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");
    let ended = run(&scene, &[temporality]);
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    assert!(ended.stderr.contains("metrics are pushed as cumulative sums"), "{ended:?}");
    assert_eq!(last(&collector.points(), "onceward_received_total", ANY).value, 3.0);
    let endpoint = format!("{}/v1/metrics", collector.url());
    for by_name in [("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &*endpoint)] {
        let ended = run(&scene, &[temporality, by_name]);
        assert_eq!(ended.code(), Some(78), "{ended:?}");
        assert!(ended.stderr.contains("asks for other sums"), "{ended:?}");
    }
}

#[test]
#[cfg(all(feature = "rabbitmq", feature = "sqlite"))]
fn a_relay_pushes_the_metrics_of_its_outbox() {
    let collector = Collector::start();
    let broker = onceward_test_servers::rabbitmq::RabbitMq::shared();
    let scene = Scene::new(&format!(
        "{ORDERS}[store.sqlite]\npath = 'o.db'\n[handler.exec]\ncommand = ['true']\n[outbox.rabbitmq]\nurl = '{}'\n",
        broker.url()
    ));
    let migrated = scene.execute("migrate @");
    assert_eq!(migrated.code(), Some(0), "{migrated:?}");
    let mut command = scene.command("outbox relay @");
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()).env("OTEL_METRIC_EXPORT_INTERVAL", "200");
    let running = scene.start(command);
    let is_it = |point: &Point| point.name == "onceward_outbox_waiting" && point.value == 0.0;
    until("the gauge", || collector.points().iter().any(is_it).then_some(()));
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
    assert!(!collector.points().iter().any(|point| point.name == "onceward_received_total"));
}
