//! Checks before the first message is received: the store is usable, and the limits of configuration and broker fit
//! together.

use std::time::Duration;

use super::config::{Mode, OnStoreDown, Ordering, PipelineConfig};
use super::context::Context;
use crate::consumer::Capabilities;
use crate::error::{Error, ErrorKind};
use crate::store::{Advice, AdviceLevel};
use crate::telemetry::Counter;

/// Waits until the store has passed its check, or a drain begins. The findings are logged.
///
/// # Errors
/// [`Error`] if the store must not be used as it is.
pub(crate) async fn ready<R>(context: &Context<R>) -> Result<(), Error> {
    advise(&context.config, &context.capabilities).iter().for_each(log);
    let waits =
        context.config.policies.on_store_down == OnStoreDown::Pause && context.config.mode == Mode::Enforce;
    let mut tries = 0;
    loop {
        let error = match tokio::time::timeout(context.config.store_timeout, context.store.check()).await {
            Ok(Ok(found)) => {
                context.counters.set_store_up(true);
                found.iter().for_each(log);
                return match found.into_iter().find(|advice| advice.level == AdviceLevel::Error) {
                    Some(advice) => Err(Error::new(ErrorKind::Config, "use this store", advice.text)),
                    None => Ok(()),
                };
            }
            Ok(Err(error)) if !error.is_retryable() => return Err(error),
            Ok(Err(error)) => error,
            Err(_) => Error::new(ErrorKind::Timeout, "check the store", "it did not answer in time"),
        };
        context.count(Counter::StoreErrors, 1);
        context.counters.set_store_up(false);
        tracing::warn!(%error, "store unavailable; no message is received");
        if !waits {
            return Ok(());
        }
        let pause = context.pause(Duration::from_millis(100), tries, Duration::from_secs(5));
        tries = tries.saturating_add(1);
        tokio::select! {
            biased;
            () = context.draining.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn log(advice: &Advice) {
    match advice.level {
        AdviceLevel::Ok => tracing::debug!("{}", advice.text),
        AdviceLevel::Warning => tracing::warn!(code = advice.code, "{}", advice.text),
        AdviceLevel::Error => tracing::error!(code = advice.code, "{}", advice.text),
    }
}

/// How the limits of a configuration relate to those of a broker. Every line is a promise that is weaker than it
/// reads; none keeps a pipeline from running.
pub fn advise(config: &PipelineConfig, broker: &Capabilities) -> Vec<Advice> {
    let mut found = Vec::new();
    let mut warn = |code, text: String| found.push(Advice::warning(code, text));
    let attempts = config.retry.max_attempts;
    if let Some(limit) = broker.delivery_limit
        && limit < attempts.saturating_add(HEADROOM)
    {
        warn(
            "delivery-limit-low",
            format!(
                "the broker gives a message up after {limit} deliveries, but {attempts} attempts and redeliveries after \
                 crashes may need more; raise its limit to at least {}, or lower max_attempts",
                attempts.saturating_add(HEADROOM)
            ),
        );
    }
    let longest_run = config.handler_timeout.saturating_add(config.cancel_grace);
    if let Some(timeout) = broker.ack_timeout
        && timeout < longest_run
    {
        warn(
            "ack-timeout-short",
            format!(
                "the broker takes a delivery back after {timeout:?}, but a handler may run for {longest_run:?}; raise the \
                 broker's timeout, or lower handler_timeout"
            ),
        );
    }
    let horizon = config.retry.span().saturating_add(broker.retention.unwrap_or_default());
    if config.ttl < horizon {
        warn(
            "ttl-below-redelivery-horizon",
            format!(
                "ttl is {:?}, but retries and the broker's retention let duplicates arrive for {horizon:?}; raise ttl, or \
                 they run again",
                config.ttl
            ),
        );
    }
    if config.ordering != Ordering::None && !broker.ordered {
        warn(
            "order-within-worker",
            "the broker does not keep the order of messages across redeliveries and workers: order holds within this \
             worker only; use partitions, FIFO groups or a single active consumer"
                .to_owned(),
        );
        warn(
            "order-key-blocks-source",
            format!(
                "the broker cannot pause single order keys: when {} messages wait in this worker, behind others of their key or \
                 for a retry, it takes no more of any key; raise max_waiting if one blocked key may hold more",
                config.max_waiting()
            ),
        );
    }
    found
}

/// Deliveries beyond the attempts, for redeliveries that no failure caused.
pub const HEADROOM: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(config: &PipelineConfig, broker: &Capabilities) -> Vec<String> {
        advise(config, broker).into_iter().map(|advice| advice.text).collect()
    }

    #[test]
    fn a_broker_without_limits_needs_no_advice() {
        assert!(advise(&PipelineConfig::default(), &Capabilities::default()).is_empty());
    }

    #[test]
    fn rule_6_a_delivery_limit_without_headroom_over_the_attempts_is_warned_about() {
        let config = PipelineConfig::default();
        let limited = |limit| Capabilities { delivery_limit: Some(limit), ..Capabilities::default() };
        assert!(texts(&config, &limited(15)).is_empty());
        assert!(texts(&config, &limited(14))[0].contains("after 14 deliveries"));
    }

    #[test]
    fn rule_6_a_handler_that_may_outlive_the_ack_timeout_is_warned_about() {
        let config = PipelineConfig::default();
        let broker =
            |secs| Capabilities { ack_timeout: Some(Duration::from_secs(secs)), ..Capabilities::default() };
        assert!(texts(&config, &broker(35)).is_empty());
        assert!(texts(&config, &broker(34))[0].contains("takes a delivery back"));
    }

    #[test]
    fn rule_7_a_ttl_shorter_than_retries_and_retention_is_warned_about() {
        let day = Duration::from_secs(24 * 3600);
        let config = PipelineConfig::default();
        let broker = |retention| Capabilities { retention: Some(retention), ..Capabilities::default() };
        assert!(texts(&config, &broker(7 * day)).is_empty());
        assert!(texts(&config, &broker(8 * day))[0].contains("raise ttl"));
    }

    #[test]
    fn rule_10_order_that_the_broker_does_not_keep_is_warned_about() {
        let config = PipelineConfig { ordering: Ordering::BrokerKey, ..PipelineConfig::default() };
        assert!(texts(&config, &Capabilities::default())[0].contains("within this worker only"));
        let ordered = Capabilities { ordered: true, ..Capabilities::default() };
        assert!(texts(&config, &ordered).is_empty());
    }
}
