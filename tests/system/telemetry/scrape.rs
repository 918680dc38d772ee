//! Scrapes of a run: [`Scrape`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;

use onceward_test_support::process::until;

use crate::stage::PATIENCE;

/// The samples of one scrape, by name and labels without `scope`.
pub(crate) type Samples = BTreeMap<String, f64>;

/// Where a run listens.
pub(crate) struct Scrape(pub(crate) u16);

impl Scrape {
    /// The current samples; `None` while nothing listens there.
    pub(crate) fn read(&self) -> Option<Samples> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.0)).ok()?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, text) = answer.split_once("\r\n\r\n")?;
        Some(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }
}

fn sample(line: &str) -> Option<(String, f64)> {
    // Without its exemplar.
    let line = line.split_once(" # ").map_or(line, |(sample, _)| sample);
    let (name, value) = line.rsplit_once(' ')?;
    let (name, labels) = name.split_once('{').unwrap_or((name, ""));
    let labels: Vec<_> = labels
        .trim_end_matches('}')
        .split(',')
        .filter(|label| !label.is_empty() && !label.starts_with("scope="))
        .collect();
    let name = name.strip_prefix("onceward_").unwrap_or(name);
    let name = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
    Some((name, value.parse().ok()?))
}

/// A run whose metrics are compared with those that it had once it was ready.
pub(super) struct Watched {
    scrape: Scrape,
    base: Samples,
    changed: BTreeSet<String>,
}

impl Watched {
    /// Waits until source and store are up.
    pub(super) fn start(port: u16) -> Self {
        let scrape = Scrape(port);
        let mut base = Samples::new();
        until("it is ready", PATIENCE, || {
            base = scrape.read().unwrap_or_default();
            ["source_up", "store_up"].iter().all(|name| base.get(*name) == Some(&1.0))
        });
        Self { scrape, base, changed: BTreeSet::new() }
    }

    /// Waits until all of these metrics have had another value than at the start; those without braces with any labels.
    pub(super) fn see(&mut self, metrics: &[&str]) {
        for metric in metrics {
            until(metric, PATIENCE, || {
                self.look();
                self.changed.iter().any(|name| name == metric || family(name) == *metric)
            });
        }
    }

    fn look(&mut self) {
        for (name, value) in self.scrape.read().unwrap_or_default() {
            if self.base.get(&name).copied().unwrap_or(0.0) != value {
                self.changed.insert(name);
            }
        }
    }

    /// The value of a sample now.
    pub(super) fn value(&self, sample: &str) -> Option<f64> {
        self.scrape.read()?.get(sample).copied()
    }

    /// The metrics that have changed, without labels and suffixes of histograms.
    pub(super) fn families(&self) -> BTreeSet<String> {
        self.changed.iter().map(|name| family(name).to_owned()).collect()
    }
}

/// The metric of a sample.
fn family(sample: &str) -> &str {
    let name = sample.split_once('{').map_or(sample, |(name, _)| name);
    ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}
