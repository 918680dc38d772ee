//! The ledger: what was produced, which effects happened, what was dead-lettered, and whether that adds up.
//!
//! | check | promise |
//! |---|---|
//! | [`Ledger::lost`] | I1: what was confirmed to the producer is an effect or a dead letter |
//! | [`Ledger::doubled`] | I2: at most one effect for each key |
//! | [`Ledger::unasked`] | I3: no effect without a message |
//! | [`Ledger::out_of_order`] | I4: first effects of an order key in its order |
//! | [`Ledger::overlapping`] | I5: runs of a key never overlap |
//!
//! It is written outside the system under test and keeps no constraint of its own, so that what should not be can be
//! seen. Each check answers with every violation; [`Ledger::verify`] panics with all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A message as its producer knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Produced {
    /// What makes messages the same; copies share it.
    pub key: String,
    /// Which messages wait for each other, if any.
    pub order_key: Option<String>,
    /// True if the broker confirmed it.
    pub confirmed: bool,
}

/// An effect in the world, or a run that has not had one yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The key of the message.
    pub key: String,
    /// When its run began.
    pub start: u64,
    /// When it happened.
    pub end: u64,
}

/// One violation of a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// I1: neither effect nor dead letter.
    Lost(String),
    /// I2: more than one effect.
    Doubled(String, usize),
    /// I3: an effect of nothing that was produced.
    Unasked(String),
    /// I4: the first effect of the second key came before that of the first.
    OutOfOrder(String, String),
    /// I5: two runs of a key at the same time.
    Overlapping(String),
}

/// Everything written down about one run of a system.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// In the order of production.
    pub produced: Vec<Produced>,
    /// In the order in which they happened.
    pub effects: Vec<Effect>,
    /// The keys of the dead letters.
    pub dead: Vec<String>,
}

impl Ledger {
    /// Confirmed keys that are neither effect nor dead letter.
    pub fn lost(&self) -> Vec<Violation> {
        let effects = self.effects.iter().map(|effect| &effect.key);
        let known: BTreeSet<_> = effects.chain(&self.dead).collect();
        let confirmed = self.produced.iter().filter(|produced| produced.confirmed);
        let lost: BTreeSet<_> =
            confirmed.map(|produced| &produced.key).filter(|key| !known.contains(key)).collect();
        lost.into_iter().cloned().map(Violation::Lost).collect()
    }

    /// Keys with more than one effect.
    pub fn doubled(&self) -> Vec<Violation> {
        let mut counts = BTreeMap::<_, usize>::new();
        for effect in &self.effects {
            *counts.entry(&effect.key).or_default() += 1;
        }
        let doubled = counts.into_iter().filter(|(_, count)| *count > 1);
        doubled.map(|(key, count)| Violation::Doubled(key.clone(), count)).collect()
    }

    /// Effects of keys that were never produced.
    pub fn unasked(&self) -> Vec<Violation> {
        let produced: BTreeSet<_> = self.produced.iter().map(|produced| &produced.key).collect();
        let effects = self.effects.iter().map(|effect| &effect.key);
        effects.filter(|key| !produced.contains(key)).cloned().map(Violation::Unasked).collect()
    }

    /// Pairs of one order key whose first effects came in another order than they were produced. What has no effect,
    /// since it was dead-lettered, is passed over.
    pub fn out_of_order(&self) -> Vec<Violation> {
        let mut first = HashMap::new();
        for (at, effect) in self.effects.iter().enumerate() {
            first.entry(&effect.key).or_insert(at);
        }
        let mut last_of_lane = HashMap::<&String, (usize, &String)>::new();
        let mut violations = Vec::new();
        let mut seen = BTreeSet::new();
        for produced in &self.produced {
            let (Some(lane), Some(&at)) = (&produced.order_key, first.get(&produced.key)) else { continue };
            if !seen.insert(&produced.key) {
                continue;
            }
            match last_of_lane.get(lane) {
                Some(&(before, key)) if before > at => {
                    violations.push(Violation::OutOfOrder(key.clone(), produced.key.clone()));
                }
                _ => {
                    last_of_lane.insert(lane, (at, &produced.key));
                }
            }
        }
        violations
    }

    /// Keys of which one run began before an earlier one had ended.
    pub fn overlapping(&self) -> Vec<Violation> {
        let mut runs: Vec<_> = self.effects.iter().collect();
        runs.sort_by_key(|run| (&run.key, run.start));
        let overlaps = runs.windows(2).filter(|two| two[0].key == two[1].key && two[1].start < two[0].end);
        overlaps.map(|two| Violation::Overlapping(two[0].key.clone())).collect()
    }

    /// Checks I1, I2 and I3, but for the `excused` keys, whose effect may have happened twice.
    ///
    /// # Panics
    /// If one does not hold; with all violations.
    pub fn verify(&self, excused: &BTreeSet<String>) {
        let doubled = self.doubled().into_iter();
        let doubled = doubled
            .filter(|violation| !matches!(violation, Violation::Doubled(key, _) if excused.contains(key)));
        let violations: Vec<_> = self.lost().into_iter().chain(doubled).chain(self.unasked()).collect();
        assert!(violations.is_empty(), "the ledger does not add up: {violations:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn produced(key: &str, order_key: &str) -> Produced {
        Produced { key: key.into(), order_key: Some(order_key.into()), confirmed: true }
    }

    fn effect(key: &str, start: u64, end: u64) -> Effect {
        Effect { key: key.into(), start, end }
    }

    /// Two copies of `a`, then `b` and `c` of the same lane; `c` is dead.
    fn sound() -> Ledger {
        Ledger {
            produced: vec![produced("a", "x"), produced("a", "x"), produced("b", "x"), produced("c", "x")],
            effects: vec![effect("a", 0, 5), effect("b", 5, 9)],
            dead: vec!["c".into()],
        }
    }

    #[test]
    fn a_sound_ledger_passes() {
        let ledger = sound();
        ledger.verify(&BTreeSet::new());
        assert_eq!((ledger.out_of_order(), ledger.overlapping()), (vec![], vec![]));
    }

    #[test]
    fn a_lost_key_is_seen_unless_it_was_never_confirmed() {
        let mut ledger = sound();
        ledger.dead.clear();
        assert_eq!(ledger.lost(), [Violation::Lost("c".into())]);
        ledger.produced[3].confirmed = false;
        assert_eq!(ledger.lost(), []);
    }

    #[test]
    fn a_doubled_effect_is_seen_unless_it_is_excused() {
        let mut ledger = sound();
        ledger.effects.push(effect("a", 9, 12));
        assert_eq!(ledger.doubled(), [Violation::Doubled("a".into(), 2)]);
        ledger.verify(&BTreeSet::from(["a".into()]));
        let refused = std::panic::catch_unwind(|| ledger.verify(&BTreeSet::from(["b".into()])));
        assert!(refused.is_err());
    }

    #[test]
    fn an_effect_of_nothing_is_seen() {
        let mut ledger = sound();
        ledger.effects.push(effect("z", 9, 12));
        assert_eq!(ledger.unasked(), [Violation::Unasked("z".into())]);
    }

    #[test]
    fn a_wrong_order_is_seen_within_a_lane_only() {
        let mut ledger = sound();
        ledger.effects.swap(0, 1);
        assert_eq!(ledger.out_of_order(), [Violation::OutOfOrder("a".into(), "b".into())]);
        ledger.produced[2].order_key = Some("y".into());
        assert_eq!(ledger.out_of_order(), []);
    }

    #[test]
    fn overlapping_runs_are_seen() {
        let mut ledger = sound();
        ledger.effects.push(effect("a", 4, 6));
        assert_eq!(ledger.overlapping(), [Violation::Overlapping("a".into())]);
    }
}
