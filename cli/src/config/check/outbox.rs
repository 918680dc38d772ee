//! Checks `[outbox]`.

use super::{Checked, DAY, broker, duration};
use crate::config::{Config, HumanDuration, OutboxTarget, Store};

pub(super) fn check(config: &Config) -> Checked {
    let outbox = &config.outbox;
    let most = HumanDuration::from_secs(3_650 * DAY.get().as_secs());
    duration(config, "outbox.keep", outbox.keep, HumanDuration::from_secs(0), most)?;
    let mut targets = outbox.targets();
    let Some(target) = targets.next() else { return Ok(()) };
    if let Some(second) = targets.next() {
        return Err(config.refuse(
            second.path(),
            format!("is given as well as {}, and a relay publishes to one broker", target.path()),
            "keep one of the two; rows for another broker need a store, and a relay, of their own",
        ));
    }
    if matches!(config.store, Store::Redis(_) | Store::Memory(_)) {
        return Err(config.refuse(
            target.path(),
            format!("has nothing to publish, since [store.{}] has no outbox", config.store.name()),
            "remove it, or use [store.postgres] or [store.sqlite]",
        ));
    }
    match target {
        OutboxTarget::Rabbitmq(rabbitmq) => broker::rabbitmq(config, target.path(), rabbitmq.broker()),
        OutboxTarget::Kafka(kafka) => broker::kafka(config, target.path(), kafka.cluster()),
        OutboxTarget::Sqs(sqs) => broker::sqs(config, target.path(), sqs.place()),
    }
}
