//! Checks `[outbox]`.

use super::{Checked, DAY, credentials, duration, url};
use crate::config::{Config, HumanDuration};

pub(super) fn check(config: &Config) -> Checked {
    let most = HumanDuration::from_secs(3_650 * DAY.get().as_secs());
    duration(config, "outbox.keep", config.outbox.keep, HumanDuration::from_secs(0), most)?;
    let Some(rabbitmq) = &config.outbox.rabbitmq else { return Ok(()) };
    url(config, "outbox.rabbitmq.url", &rabbitmq.url, &["amqp", "amqps"])?;
    credentials(config, "outbox.rabbitmq", rabbitmq.credentials(), Some(&rabbitmq.url))
}
