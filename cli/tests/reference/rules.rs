//! Alert and recording rules in `deploy/prometheus`: they are valid, fire when they should, and name metrics that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::metrics::Metrics;

const RULES: [&str; 2] = ["alerts.yaml", "recording.yaml"];

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
    for file in RULES {
        let rules = std::fs::read_to_string(folder().join(file)).unwrap();
        let words = rules.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
        let named: BTreeSet<_> = words.filter(|word| word.starts_with("onceward_")).collect();
        assert!(!named.is_empty(), "{file} names no metric");
        for name in named {
            assert!(served.contains(name), "{file} names {name}, which is not served");
        }
    }
}
