//! Alerts of `deploy/prometheus` over the samples of a run, and their runbooks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use onceward_test_support::scene::Scene;
use serde_json::{Value, json};

use crate::stage::ONCEWARD;
use crate::telemetry::scrape::Samples;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// An alert, as far as people read it.
pub(super) struct Alert {
    summary: String,
    runbook_url: String,
    /// The command of its annotations.
    pub(super) command: String,
}

impl Alert {
    /// Reads the alert of this name.
    pub(super) fn read(name: &str) -> Self {
        let rules = read("deploy/prometheus/alerts.yaml");
        let begin = format!("- alert: {name}\n");
        let (_, rule) = rules.split_once(&begin).unwrap_or_else(|| panic!("no alert {name}"));
        let rule = rule.split("- alert: ").next().unwrap_or_default();
        let value = |field: &str| {
            let found = rule.lines().find_map(|line| line.trim().strip_prefix(field));
            found.unwrap_or_else(|| panic!("{name} has no {field}")).trim().trim_matches('"').to_owned()
        };
        Self { summary: value("summary:"), runbook_url: value("runbook_url:"), command: value("command:") }
    }

    /// It names the component that is unavailable.
    pub(super) fn names(&self, component: &str) {
        let (_, sentence) = self.summary.split_once(": ").expect("the scope, and a sentence");
        let subject = sentence.split(" does not ").next().unwrap_or_default();
        let subject = subject.split(" cannot ").next().and_then(|part| part.split(" is ").next());
        assert!(
            subject.is_some_and(|subject| subject.contains(component)),
            "{component} is no subject of {:?}",
            self.summary
        );
    }

    /// The section that it links to, whose commands the program has.
    pub(super) fn runbook(&self) -> String {
        let (_, path) = self.runbook_url.split_once("/blob/main/").expect("a file of this repository");
        let (path, anchor) = path.split_once('#').expect("a section");
        let page = read(path);
        let mut lines = page.lines().skip_while(|line| !is_heading_of(line, anchor));
        let heading = lines.next().unwrap_or_else(|| panic!("{path} has no section {anchor}"));
        let level = heading.bytes().take_while(|byte| *byte == b'#').count();
        let is_end = |line: &&str| {
            let own = line.bytes().take_while(|byte| *byte == b'#').count();
            (1..=level).contains(&own) && line[own..].starts_with(' ')
        };
        let section: Vec<_> = lines.take_while(|line| !is_end(line)).collect();
        let commands: Vec<_> = section
            .iter()
            .filter_map(|line| line.trim().trim_start_matches("$ ").strip_prefix("onceward "))
            .collect();
        assert!(!commands.is_empty(), "no command in {path}#{anchor}");
        for command in commands {
            is_known(command);
        }
        section.join("\n")
    }
}

fn is_heading_of(line: &str, anchor: &str) -> bool {
    let Some(text) = line.strip_prefix('#') else { return false };
    let text = text.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).eq(anchor.chars())
}

/// The program has this command and its options.
fn is_known(command: &str) {
    let command = command.split('#').next().unwrap_or_default();
    let words: Vec<_> = command.split_whitespace().collect();
    let names: Vec<_> = words
        .iter()
        .take_while(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
        .collect();
    let ended = Command::new(ONCEWARD).args(&names).arg("--help").output().expect("the program starts");
    assert!(ended.status.success(), "onceward {command}: {}", String::from_utf8_lossy(&ended.stderr));
    let help = String::from_utf8_lossy(&ended.stdout);
    for option in words.iter().filter(|word| word.starts_with("--")) {
        assert!(help.contains(*option), "onceward {command} has no {option}");
    }
}

/// The minute at which alerts are looked at; the outage begins at the fifth.
const LOOK: usize = 14;

/// Checks that exactly `expected` of `alert` and the alerts that page an operator fires some minutes after the beginning of an outage
/// whose samples were `before` and are `during` it, if gauges stay as they are and counters go on in the same way.
pub(super) fn assert_fires(
    scene: &Scene,
    alert: &str,
    expected: &[&str],
    before: &Samples,
    during: &Samples,
) {
    let series: Vec<Value> = before.iter().filter_map(|(name, value)| series(name, *value, during)).collect();
    let firing = "ALERTS{alertstate='firing'";
    let query =
        format!("count by (alertname) ({firing},severity='page'}} or {firing},alertname='{alert}'}})");
    let fired: Vec<_> = expected
        .iter()
        .map(|alert| json!({"labels": format!("{{alertname=\"{alert}\"}}"), "value": 1}))
        .collect();
    // JSON is YAML.
    let test = json!({
        "rule_files": [repository().join("deploy/prometheus/alerts.yaml")],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": series,
            "promql_expr_test": [{"expr": query, "eval_time": format!("{LOOK}m"), "exp_samples": fired}],
        }],
    });
    scene.write("alerts-test.yaml", test.to_string().as_bytes());
    let ended = Command::new("promtool").args(["test", "rules"]).arg(scene.path("alerts-test.yaml")).output();
    let ended = ended.expect("promtool starts: install Debian's package prometheus, or run scripts/setup");
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(
        ended.status.success(),
        "{alert}: {expected:?} should fire: {said}\nduring the outage: {during:#?}"
    );
}

/// The samples of one name and labels, one a minute: five of `before`, and then those of the outage.
fn series(name: &str, before: f64, during: &Samples) -> Option<Value> {
    let is_part = ["_bucket", "_sum", "_count"].iter().any(|suffix| name.contains(suffix));
    if is_part || name.starts_with("process_") {
        return None;
    }
    let values = match during.get(name) {
        None => format!("{before}x4 stale"),
        Some(now) if name.contains("_total") => {
            let more = now - before;
            format!("{before}x4 {now}+{more}x{LOOK}")
        }
        Some(now) => format!("{before}x4 {now}x{LOOK}"),
    };
    Some(json!({"series": format!("onceward_{name}"), "values": values}))
}
