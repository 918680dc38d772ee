//! Alert and recording rules in `deploy/prometheus`, and the dashboard in `deploy/grafana`: they are valid, alerts fire when
//! they should, and all name metrics that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::metrics::Metrics;

const RULES: [&str; 2] = ["alerts.yaml", "recording.yaml"];
const DASHBOARD: &str = "../grafana/onceward.json";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

fn promtool(command: &str, files: &[&str]) {
    let mut promtool = Command::new("promtool");
    promtool.args(command.split(' ')).args(files).current_dir(folder());
    let ended = promtool
        .output()
        .expect("promtool starts: install Debian's package prometheus, or run scripts/setup");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(ended.status.success(), "{}{}", text(&ended.stdout), text(&ended.stderr));
}

#[test]
fn rules_are_valid_and_each_alert_fires_in_its_test() {
    promtool("check rules", &RULES);
    promtool("test rules", &["tests.yaml"]);
    let read = |name| std::fs::read_to_string(folder().join(name)).unwrap();
    let (alerts, tests) = (read("alerts.yaml"), read("tests.yaml"));
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let fires = tests.lines().any(|line| line.trim() == format!("- alertname: {alert}"));
        assert!(fires, "{alert} fires in no test");
    }
}

/// The series that a scrape of these metrics has.
fn series(metrics: &Metrics) -> BTreeSet<String> {
    let suffixes = |kind: &str| match kind {
        "counter" => &["_total"][..],
        "histogram" => &["_bucket", "_sum", "_count"],
        "info" => &["_info"],
        _ => &[""],
    };
    let all = metrics
        .iter()
        .flat_map(|(name, (kind, _))| suffixes(kind).iter().map(move |suffix| format!("{name}{suffix}")));
    all.collect()
}

/// Checks that every metric that a rule names is in one of these scrapes.
pub(super) fn check_names(scrapes: [&Metrics; 2]) {
    let served: BTreeSet<_> = scrapes.into_iter().flat_map(series).collect();
    for file in RULES.into_iter().chain([DASHBOARD]) {
        let rules = std::fs::read_to_string(folder().join(file)).unwrap();
        let words = rules.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
        let named: BTreeSet<_> = words.filter(|word| word.starts_with("onceward_")).collect();
        assert!(!named.is_empty(), "{file} names no metric");
        for name in named {
            assert!(served.contains(name), "{file} names {name}, which is not served");
        }
    }
}

#[test]
fn the_dashboard_is_valid_and_each_panel_has_a_query_of_its_scope() {
    let text = std::fs::read_to_string(folder().join(DASHBOARD)).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let queries = panel["targets"].as_array().unwrap();
        assert!(!queries.is_empty(), "{}", panel["title"]);
        for query in queries {
            let query = query["expr"].as_str().unwrap();
            assert!(query.contains("$scope") && query.contains("onceward_"), "{}: {query}", panel["title"]);
        }
    }
}
