//! The counts of a run of effects: [`EffectsSummary`].

/// The counts of a run of a [`KafkaEffects`](crate::KafkaEffects).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EffectsSummary {
    /// Records whose effect was committed.
    pub records: u64,
    /// Records whose effect was committed before.
    pub known: u64,
    /// Records without an effect, because a record with the same key has it.
    pub copies: u64,
    /// Records without a key, skipped by policy.
    pub rejected: u64,
    /// Records sent to the dead-letter topic instead.
    pub dead_lettered: u64,
}
