//! The command line and the output that all benchmarks of brokers and stores share: `-- [PART...] [MESSAGES [ROUNDS]] [--json]`.
//!
//! With `--json` each measured round of a variant is a line, as `scripts/bench` reads them:
//!
//! ```json
//! {"bench":"rabbitmq","part":"quorum","variant":"pipeline","round":1,"messages":50000,"seconds":0.52,"rate":96154.0,
//!  "relative_to":"raw","ratio":0.91}
//! ```
//!
//! `seconds` and `rate` (messages per second) are measured by the clock unless the part says otherwise. `relative_to` and `ratio` are
//! null for what the others are compared with. The ratio is that of the same round, in which both ran one after the other.

#![allow(clippy::print_stdout)]

use serde_json::json;

/// A benchmark's name, and what its command line says.
#[derive(Clone, Debug)]
pub struct Figures {
    bench: &'static str,
    json: bool,
    numbers: Vec<usize>,
    parts: Vec<String>,
}

/// What was measured, and messages per second in each round.
pub type Series<'a> = (&'a str, &'a [f64]);

impl Figures {
    /// Reads the command line of this process.
    pub fn of(bench: &'static str) -> Self {
        Self::parse(bench, std::env::args().skip(1))
    }

    fn parse(bench: &'static str, arguments: impl Iterator<Item = String>) -> Self {
        let mut figures = Self { bench, json: false, numbers: Vec::new(), parts: Vec::new() };
        for argument in arguments {
            match (argument.as_str(), argument.parse()) {
                ("--json", _) => figures.json = true,
                // Cargo's own.
                ("--bench", _) => {}
                (_, Ok(number)) => figures.numbers.push(number),
                _ => figures.parts.push(argument),
            }
        }
        figures
    }

    /// Whether lines for a program are wanted, and no text.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// How many messages a run has, if the command line does not say it: `usual`.
    pub fn messages(&self, usual: usize) -> usize {
        self.numbers.first().copied().unwrap_or(usual)
    }

    /// How often everything is measured, if the command line does not say it: `usual`.
    pub fn rounds(&self, usual: usize) -> usize {
        self.numbers.get(1).copied().unwrap_or(usual)
    }

    /// The parts that are asked for, or the usual ones.
    pub fn parts<'a>(&'a self, usual: &[&'a str]) -> Vec<&'a str> {
        match self.parts.is_empty() {
            true => usual.to_vec(),
            false => self.parts.iter().map(String::as_str).collect(),
        }
    }

    /// Prints what was measured in turns, each round of a variant beside the same round of what it is compared with.
    pub fn report(&self, part: &str, messages: usize, base: Series<'_>, variants: &[Series<'_>]) {
        match self.json {
            true => self.lines(part, messages, base, variants).iter().for_each(|line| println!("{line}")),
            false => self.text(part, base, variants).iter().for_each(|line| println!("{line}")),
        }
    }

    /// Prints the lines of `--json`, if they are wanted, of a benchmark that has a text of its own.
    pub fn record(&self, part: &str, messages: usize, base: Series<'_>, variants: &[Series<'_>]) {
        if self.json {
            self.report(part, messages, base, variants);
        }
    }

    /// Prints values that are no rates, such as sizes; `variant` names their unit.
    pub fn report_values(&self, part: &str, variant: &str, values: &[f64]) {
        if !self.json {
            println!("{part}: {values:.1?} {variant}");
            return;
        }
        for (round, value) in values.iter().enumerate() {
            println!("{}", self.line(part, (variant, round, *value), None, None));
        }
    }

    /// The JSON of a round. A value without `messages` has no time; `against` is the name and the rate of what it is compared with.
    fn line(
        &self,
        part: &str,
        (variant, round, rate): (&str, usize, f64),
        messages: Option<usize>,
        against: Option<(&str, f64)>,
    ) -> String {
        let line = json!({
            "bench": self.bench,
            "part": part,
            "variant": variant,
            "round": round + 1,
            "messages": messages.unwrap_or_default(),
            "seconds": messages.map(|messages| messages as f64 / rate),
            "rate": rate,
            "relative_to": against.map(|(name, _)| name),
            "ratio": against.map(|(_, other)| rate / other),
        });
        line.to_string()
    }

    fn lines(&self, part: &str, messages: usize, base: Series<'_>, variants: &[Series<'_>]) -> Vec<String> {
        let mut lines = Vec::new();
        for (round, rate) in base.1.iter().enumerate() {
            lines.push(self.line(part, (base.0, round, *rate), Some(messages), None));
        }
        for (name, rates) in variants {
            for (round, (rate, other)) in rates.iter().zip(base.1).enumerate() {
                lines.push(self.line(part, (name, round, *rate), Some(messages), Some((base.0, *other))));
            }
        }
        lines
    }

    fn text(&self, part: &str, (name, rates): Series<'_>, variants: &[Series<'_>]) -> Vec<String> {
        let mut lines = vec![format!("{part}: {name} {rates:.0?} messages/s")];
        for (variant, own) in variants {
            let ratio = median(own.iter().zip(rates).map(|(own, other)| own / other).collect());
            lines.push(format!("{part}: {variant} {own:.0?} messages/s; ratio {ratio:.2}"));
        }
        lines
    }
}

/// The middle one, of an even number the upper of the two; of an empty list, not a number.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Figures {
        Figures::parse("kafka", line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_command_line_has_parts_numbers_and_the_format() {
        let figures = parsed("redis order 2000 2 --json --bench");
        assert_eq!((figures.messages(9), figures.rounds(9), figures.is_json()), (2000, 2, true));
        assert_eq!(figures.parts(&["all"]), ["redis", "order"]);
        let usual = parsed("--bench");
        assert_eq!((usual.messages(9), usual.rounds(8), usual.is_json()), (9, 8, false));
        assert_eq!(usual.parts(&["all"]), ["all"]);
    }

    #[test]
    fn a_line_compares_a_round_with_the_same_round() {
        let lines =
            parsed("--json").lines("redis", 100, ("alone", &[50.0, 200.0]), &[("ours", &[25.0, 150.0])]);
        let lines: Vec<serde_json::Value> = lines.iter().map(|line| line.parse().unwrap()).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!((&lines[0]["relative_to"], &lines[0]["ratio"]), (&json!(null), &json!(null)));
        assert_eq!(lines[0]["seconds"], json!(2.0));
        let last = json!({
            "bench": "kafka", "part": "redis", "variant": "ours", "round": 2, "messages": 100,
            "seconds": 100.0 / 150.0, "rate": 150.0, "relative_to": "alone", "ratio": 0.75,
        });
        assert_eq!(lines[3], last);
    }

    #[test]
    fn the_text_has_the_median_of_the_pairs() {
        let pairs: [Series<'_>; 2] = [("raw", &[10.0, 20.0, 40.0]), ("ours", &[9.0, 10.0, 28.0])];
        let text = parsed("").text("quorum", pairs[0], &pairs[1..]);
        assert_eq!(text[1], "quorum: ours [9, 10, 28] messages/s; ratio 0.70");
    }
}
