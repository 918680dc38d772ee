//! What will run, but promises less than it seems to: limits of the pipeline held against what the broker does.

use std::time::Duration;

use super::config::{Ordering, PipelineConfig};
use crate::consumer::Capabilities;
use crate::store::{Advice, AdviceLevel};

impl PipelineConfig {
    /// Compares the limits with those of the source. A pipeline logs these findings when it starts.
    ///
    /// ```
    /// use std::time::Duration;
    /// use onceward::{Capabilities, PipelineConfig};
    /// let mut source = Capabilities::default();
    /// source.retention = Some(Duration::from_secs(14 * 24 * 3600));
    /// let advice = PipelineConfig::default().advice(&source);
    /// assert!(advice[0].text.contains("ttl"));
    /// ```
    pub fn advice(&self, source: &Capabilities) -> Vec<Advice> {
        [self.horizon(source), self.delivery_limit(source), self.ack_timeout(source), self.order(source)]
            .into_iter()
            .flatten()
            .map(|text| Advice::new(AdviceLevel::Warning, text))
            .collect()
    }

    /// The TTL must cover the time in which copies can still arrive.
    fn horizon(&self, source: &Capabilities) -> Option<String> {
        let horizon = self.retry.span().saturating_add(source.retention.unwrap_or(Duration::ZERO));
        (self.ttl < horizon).then(|| {
            format!(
                "ttl is {:?}, but copies can arrive for {horizon:?} (retries and the broker's retention): raise ttl, or \
                 copies that come later run again",
                self.ttl
            )
        })
    }

    /// The broker must not drop a message that still has attempts. Lapses and shutdowns deliver again as well.
    fn delivery_limit(&self, source: &Capabilities) -> Option<String> {
        let limit = source.delivery_limit?;
        let wanted = self.retry.max_attempts.saturating_mul(2);
        (limit < wanted).then(|| {
            format!(
                "the broker gives a message up after {limit} deliveries, with max_attempts at {}: allow at least {wanted} \
                 deliveries, or it may be dropped before its attempts are used up",
                self.retry.max_attempts
            )
        })
    }

    fn ack_timeout(&self, source: &Capabilities) -> Option<String> {
        let timeout = source.ack_timeout?;
        let waits = self.cancel_grace.saturating_add(self.retry.backoff.max);
        let longest = self.handler_timeout.saturating_add(waits);
        (timeout < longest).then(|| {
            format!(
                "the broker takes a delivery back after {timeout:?}, but a run with one retry may hold it for {longest:?}: \
                 shorten handler_timeout or retry.max, or raise the broker's limit"
            )
        })
    }

    fn order(&self, source: &Capabilities) -> Option<String> {
        (self.ordering != Ordering::None && !source.ordered).then(|| {
            "order is kept within this process only: with several workers the broker must help (a partition, a FIFO \
             group, a single active consumer)"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(config: &PipelineConfig, source: &Capabilities) -> Vec<String> {
        config.advice(source).into_iter().map(|advice| advice.text).collect()
    }

    #[test]
    fn rule_7_a_ttl_below_the_redelivery_horizon_is_warned_about_and_one_above_is_not() {
        let day = Duration::from_secs(24 * 3600);
        let source = Capabilities { retention: Some(4 * day), ..Capabilities::default() };
        let short = PipelineConfig { ttl: 3 * day, ..PipelineConfig::default() };
        assert_eq!(texts(&short, &source).len(), 1);
        assert!(texts(&short, &source)[0].contains("raise ttl"));
        let long = PipelineConfig { ttl: 5 * day, ..PipelineConfig::default() };
        assert_eq!(texts(&long, &source), Vec::<String>::new());
    }

    #[test]
    fn rule_6_a_broker_that_gives_up_before_the_attempts_do_is_warned_about() {
        let config = PipelineConfig::default();
        let limit = |limit| Capabilities { delivery_limit: Some(limit), ..Capabilities::default() };
        assert!(texts(&config, &limit(5))[0].contains("allow at least 10"));
        assert_eq!(texts(&config, &limit(10)), Vec::<String>::new());
        let ack = |seconds| Capabilities {
            ack_timeout: Some(Duration::from_secs(seconds)),
            ..Capabilities::default()
        };
        assert!(texts(&config, &ack(60))[0].contains("takes a delivery back"));
        assert_eq!(texts(&config, &ack(1800)), Vec::<String>::new());
    }

    #[test]
    fn rule_10_order_without_the_brokers_help_is_warned_about() {
        let config = PipelineConfig { ordering: Ordering::BrokerKey, ..PipelineConfig::default() };
        assert_eq!(texts(&config, &Capabilities::default()).len(), 1);
        let ordered = Capabilities { ordered: true, ..Capabilities::default() };
        assert_eq!(texts(&config, &ordered), Vec::<String>::new());
    }
}
