//! Counts of a run in observe mode, in bounded space: [`Observation`].

use onceward::telemetry::{KeySighting, KnownAs, Observer};
use parking_lot::Mutex;

use super::ages::AgeSketch;
use super::sample::Sample;

/// What a run in observe mode has shown of its keys.
#[derive(Debug, Default)]
pub(super) struct Observation(Mutex<Observed>);

/// See [`Observation`].
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// Deliveries with a key that the store answered for.
    pub(super) sighted: u64,
    /// Of these, duplicates of completed keys.
    pub(super) completed: u64,
    /// Duplicates that came while the first delivery was handled.
    pub(super) in_progress: u64,
    /// Copies of dead-lettered messages.
    pub(super) dead: u64,
    /// Deliveries whose key was known with another payload.
    pub(super) mismatches: u64,
    /// The ages of duplicates of completed keys.
    pub(super) ages: AgeSketch,
    /// The deliveries of each key.
    pub(super) keys: Sample<u32>,
    /// The payloads of deliveries that were no duplicates by their key.
    pub(super) payloads: Sample<PayloadKeys>,
}

/// Which keys a payload came under.
#[derive(Clone, Copy, Debug)]
pub(super) struct PayloadKeys {
    first: u64,
    pub(super) has_others: bool,
}

impl Observation {
    /// Reads what was counted so far.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Observed) -> T) -> T {
        read(&self.0.lock())
    }
}

impl Observer for Observation {
    fn sighted(&self, sighting: &KeySighting) {
        let mut observed = self.0.lock();
        observed.sighted += 1;
        let key = *sighting.key.as_bytes();
        observed.keys.count(key, 1, |deliveries| *deliveries = deliveries.saturating_add(1));
        match sighting.known {
            KnownAs::Completed(age) => {
                observed.completed += 1;
                observed.ages.add(age);
            }
            KnownAs::InProgress => observed.in_progress += 1,
            KnownAs::Dead => observed.dead += 1,
            KnownAs::Mismatch => observed.mismatches += 1,
            _ => {
                if let Some(fingerprint) = sighting.fingerprint {
                    let [first @ .., _, _, _, _, _, _, _, _] = key;
                    let first = u64::from_be_bytes(first);
                    let keys = PayloadKeys { first, has_others: false };
                    let note = |keys: &mut PayloadKeys| keys.has_others |= keys.first != first;
                    observed.payloads.count(*fingerprint.as_bytes(), keys, note);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use onceward::{Fingerprint, Key};

    use super::*;

    fn sight(observation: &Observation, key: u8, payload: u8, known: KnownAs) {
        let (key, payload) = (Key::from_bytes([key; 16]), Fingerprint::from_bytes([payload; 16]));
        observation.sighted(&KeySighting::new(key, Some(payload), known));
    }

    #[test]
    fn payloads_under_several_keys_are_counted_and_those_of_duplicates_are_not() {
        let observation = Observation::default();
        sight(&observation, 1, 1, KnownAs::New);
        // Failed, and redelivered.
        sight(&observation, 1, 1, KnownAs::New);
        sight(&observation, 2, 2, KnownAs::New);
        sight(&observation, 3, 2, KnownAs::New);
        sight(&observation, 2, 2, KnownAs::Completed(Duration::from_secs(9)));
        sight(&observation, 1, 3, KnownAs::Mismatch);
        observation.read(|seen| {
            assert_eq!((seen.sighted, seen.completed, seen.mismatches), (6, 1, 1));
            assert_eq!(seen.payloads.values().filter(|keys| keys.has_others).count(), 1);
            assert_eq!((seen.payloads.size(), seen.keys.size()), (2, 3));
            let mut deliveries: Vec<_> = seen.keys.values().copied().collect();
            deliveries.sort_unstable();
            assert_eq!(deliveries, [1, 2, 3]);
        });
    }
}
