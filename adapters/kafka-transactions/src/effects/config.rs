//! The configuration of effects: [`EffectsConfig`].

use std::time::Duration;

use onceward::retry::RetryPolicy;
use onceward_kafka::KafkaConfig;

use crate::effects::keys::EffectKeys;

/// The configuration of a [`KafkaEffects`](crate::KafkaEffects).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EffectsConfig {
    /// The cluster, the group and the topics. Retry topics are not used: order is preserved.
    pub source: KafkaConfig,
    /// The timeout of one run of the handler; default 30 s.
    pub handler_timeout: Duration,
    /// How often and when a failed record is retried, in its place. Attempts are counted in this process.
    pub retry: RetryPolicy,
    /// The topic for records that failed permanently. Without it such a record is retried forever, and its partition waits. A
    /// letter that exceeds the topic's limit is sent without payload: its headers have the position of the record, and
    /// `onceward-oversize-bytes` its size.
    pub dead_letters: Option<String>,
    /// With keys, records that a producer has sent twice have one effect as well. `None` to deduplicate by position only.
    pub keys: Option<EffectKeys>,
}

impl EffectsConfig {
    /// Processes the records of `source`, with the defaults.
    pub fn new(source: KafkaConfig) -> Self {
        let handler_timeout = Duration::from_secs(30);
        Self { source, handler_timeout, retry: RetryPolicy::default(), dead_letters: None, keys: None }
    }
}
