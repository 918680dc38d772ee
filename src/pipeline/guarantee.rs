//! The guarantee levels, as types: [`Deduplicated`] and [`EffectivelyOnce`].

/// One effect per (scope, key) in the TTL, provided that an error or timeout means that the effect did not happen, and
/// that the process neither dies nor loses its lease between the handler's start and its completion.
#[derive(Debug)]
pub enum Deduplicated {}

/// Exactly one committed effect per (scope, key) in the TTL, even if any process is killed: the completion is committed
/// in the effect's own transaction.
#[derive(Debug)]
pub enum EffectivelyOnce {}

/// A guarantee level, as a type: [`Deduplicated`] or [`EffectivelyOnce`].
pub trait Guarantee: Send + 'static {
    /// The level's name in configuration and logs.
    const NAME: &'static str;
}

impl Guarantee for Deduplicated {
    const NAME: &'static str = "deduplicated";
}

impl Guarantee for EffectivelyOnce {
    const NAME: &'static str = "effectively-once";
}
