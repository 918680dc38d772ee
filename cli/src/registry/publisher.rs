//! Opens the publishers of other brokers: for `[handler.publish.*]` and for the outbox.

use std::sync::Arc;
use std::time::Duration;

use onceward::{Error, GatheredPublisher, Publisher};

use super::not_in_this_build;
use crate::config::{Config, PublishHandler};

/// Messages in a batch, at most: a broker confirms a batch of this size in about the time of a single message.
const BATCH: usize = 256;

/// A publisher, and where in its broker it publishes to.
pub(crate) struct Target {
    pub(crate) publisher: Arc<dyn Publisher>,
    /// As the publisher understands it.
    pub(crate) destination: String,
}

/// Connects to the broker of `[handler.publish.*]` and looks whether the destination is there.
///
/// # Errors
/// [`Error`] if it cannot be reached or used as it is configured.
pub(crate) async fn open_publisher(config: &Config, target: &PublishHandler) -> Result<Target, Error> {
    let (publisher, destination) = open(config, target).await?;
    let publisher = GatheredPublisher::new(publisher, BATCH, config.handler.timeout().get());
    Ok(Target { publisher: Arc::new(publisher), destination })
}

/// How long a publisher of the handler waits for confirms: less than the handler's timeout, which would end the run before the
/// publisher says what is wrong.
pub(super) fn confirm_limit(config: &Config, most: Duration) -> Duration {
    config.handler.timeout().get().mul_f64(0.9).min(most)
}

async fn open(config: &Config, target: &PublishHandler) -> Result<(Arc<dyn Publisher>, String), Error> {
    match target {
        #[cfg(feature = "rabbitmq")]
        PublishHandler::Rabbitmq(target) => super::rabbitmq::target(config, target).await,
        #[cfg(feature = "sqs")]
        PublishHandler::Sqs(target) => super::sqs::target(config, target).await,
        #[cfg(feature = "kafka")]
        PublishHandler::Kafka(target) => super::kafka::target(config, target).await,
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        other => {
            let _ = config;
            Err(not_in_this_build(&format!("handler.publish.{}", other.name())))
        }
    }
}
