//! The report of a measurement: [`BenchReport`].

use std::time::Duration;

use serde_json::{Value, json};

use super::contestant::{Contestant, settings};
use super::run::Measured;
use crate::args::BenchArgs;
use crate::commands::keys::time;
use crate::config::Config;
use crate::output::millis;
use crate::registry;

/// What was measured, and how.
pub(super) struct BenchReport<'a> {
    pub(super) config: &'a Config,
    pub(super) args: &'a BenchArgs,
    pub(super) tuned: &'a Config,
    pub(super) suffix: &'a str,
    pub(super) measured: &'a [Measured],
    /// Keys are left, and expire within this time.
    pub(super) left: Option<Duration>,
}

/// The median of some figures, with the least and the most.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// `None` without figures.
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let upper = *figures.get(middle)?;
        let median =
            if figures.len().is_multiple_of(2) { (figures[middle - 1] + upper) / 2.0 } else { upper };
        Some(Self { median, least: *figures.first()?, most: *figures.last()? })
    }

    fn as_json(self) -> Value {
        let rounded = |figure: f64| (figure * 1e4).round() / 1e4;
        json!({"median": rounded(self.median), "least": rounded(self.least), "most": rounded(self.most)})
    }
}

impl Measured {
    #[allow(clippy::cast_precision_loss, reason = "at most ten million messages")]
    fn per_second(&self) -> f64 {
        self.checked.messages as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl BenchReport<'_> {
    fn of(&self, contestant: Contestant) -> impl Iterator<Item = &Measured> {
        self.measured.iter().filter(move |measured| measured.contestant == contestant)
    }

    fn rates(&self, contestant: Contestant) -> Option<Spread> {
        Spread::of(self.of(contestant).map(Measured::per_second).collect())
    }

    /// The rates of `contestant` in parts of those of `base` in the same round.
    fn ratios(&self, contestant: Contestant, base: Contestant) -> Option<Spread> {
        let ratio = |measured: &Measured| {
            let base = self.of(base).find(|base| base.round == measured.round)?;
            Some(measured.per_second() / base.per_second())
        };
        Spread::of(self.of(contestant).filter_map(ratio).collect())
    }

    /// The report as one JSON object.
    pub(super) fn as_json(&self) -> Value {
        let result = |contestant: Contestant| {
            let ratio = |base| self.ratios(contestant, base).map(Spread::as_json);
            json!({
                "name": contestant.name(),
                "messages_per_second": self.rates(contestant).map(Spread::as_json),
                "of_raw": ratio(Contestant::Raw),
                "of_one_by_one": ratio(Contestant::OneByOne),
            })
        };
        let run = |measured: &Measured| {
            json!({
                "name": measured.contestant.name(),
                "round": measured.round,
                "messages": measured.checked.messages,
                "elapsed_ms": millis(measured.elapsed),
                "messages_per_second": measured.per_second().round(),
                "handled": measured.checked.handled,
                "suppressed": measured.checked.suppressed,
                "redelivered": measured.checked.redelivered,
            })
        };
        json!({
            "scope": self.config.scope,
            "source": registry::describe_source(self.config),
            "store": registry::describe_store(self.config),
            "temporary": self.suffix,
            "messages": self.args.messages,
            "bytes": self.args.size,
            "duplicates_percent": self.args.duplicates,
            "rounds": self.args.rounds,
            "tuned": settings(self.tuned).into_iter().map(|(name, value)| (name.to_owned(), json!(value)))
                .collect::<serde_json::Map<_, _>>(),
            "results": Contestant::ALL.map(result),
            "keys_expire_within_ms": self.left.map(millis),
            "runs": self.measured.iter().map(run).collect::<Vec<_>>(),
        })
    }

    /// The report as lines of text.
    pub(super) fn lines(&self) -> Vec<String> {
        let BenchArgs { messages, size, rounds, duplicates, .. } = self.args;
        let rounds_of = if *rounds == 1 { "round" } else { "rounds" };
        let mut lines = vec![
            format!(
                "{} with {}: {rounds} {rounds_of} of {messages} messages of {size} bytes, {duplicates} % of them copies",
                registry::describe_source(self.config),
                registry::describe_store(self.config)
            ),
            format!("{:<12}{:>32}{:>24}{:>24}", "", "messages/s", "of raw", "of one-by-one"),
        ];
        for contestant in Contestant::ALL {
            let rate = self.rates(contestant).map(|rate| shown(rate, whole)).unwrap_or_default();
            let ratio = |base| match self.ratios(contestant, base) {
                Some(ratio) if base != contestant => shown(ratio, |figure| format!("{figure:.2}")),
                _ => String::new(),
            };
            let (raw, single) = (ratio(Contestant::Raw), ratio(Contestant::OneByOne));
            lines.push(
                format!("{:<12}{rate:>32}{raw:>24}{single:>24}", contestant.name()).trim_end().to_owned(),
            );
        }
        let tuned: Vec<_> =
            settings(self.tuned).into_iter().map(|(name, value)| format!("{name} = {value}")).collect();
        lines.push(format!("tuned: [pipeline] {}", tuned.join(", ")));
        let suppressed: u64 = self.measured.iter().map(|measured| measured.checked.suppressed).sum();
        lines.push(format!(
            "checked: {} runs, each message handled exactly once where keys were claimed, {suppressed} deliveries suppressed",
            self.measured.len()
        ));
        lines.push(match self.left {
            None => format!("removed: all sources and keys named {}", self.suffix),
            Some(expire_within) => format!(
                "removed: all sources named {0}; left: keys of the scope {1}.{0}, which expire within {2}",
                self.suffix,
                self.config.scope,
                time(expire_within)
            ),
        });
        lines
    }
}

/// Median, least and most.
fn shown(spread: Spread, figure: impl Fn(f64) -> String) -> String {
    format!("{} ({} to {})", figure(spread.median), figure(spread.least), figure(spread.most))
}

/// A whole number with its thousands apart.
fn whole(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_between_the_least_and_the_most() {
        let spread = |figures: &[f64]| Spread::of(figures.to_vec());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, least: 1.0, most: 4.0 }));
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!([0.4, 999.0, 1_000.0, 1_234_567.8].map(whole), ["0", "999", "1,000", "1,234,568"]);
    }
}
