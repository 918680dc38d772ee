//! `[source.rabbitmq]`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::adapter::{CheckpointStore, Consumer, Replies};
use onceward::{DeadLetters, Error, ErrorKind, HeaderTrust, KeySource, OwnHeaders, Publisher, Scope};
use onceward_plugin::value::HumanDuration;
use onceward_plugin::{
    Backlog, Checked, Context, DeadLetterStatus, Finding, Letters, Place, Problem, SourceFacts, SourceParts,
    SourcePlugin, TemporarySource, check, source,
};

use super::connection::broker_table;
use super::temporary::{self, TemporaryQueue};
use crate::{
    RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqLetters, RabbitmqPublisher,
    RabbitmqQueueConfig, RabbitmqReplies,
};

broker_table! {
    /// A RabbitMQ queue.
    RabbitmqSource [] {
        /// The queue to consume. It must exist.
        pub queue: String,
        /// How many unacknowledged messages the broker may deliver to this process, from 1 to 65535. By default sixteen times
        /// `pipeline.concurrency`, up to 1024, so that other workers get messages too; less where the last of them could wait for
        /// longer than `ack_timeout`, but at least four times `pipeline.concurrency`. Their bytes do not count in `pipeline.max_in_flight_bytes` before they are
        /// received from the client. Messages that wait in this process for their
        /// next attempt count as well.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub prefetch: Option<u32>,
        /// True for a queue with `x-single-active-consumer`, which keeps its order across workers.
        #[serde(default)]
        pub single_active_consumer: bool,
        /// The broker's `consumer_timeout`: after it, the broker requeues unacknowledged messages and closes the
        /// channel. `0s` if it is turned off.
        #[serde(default = "default_ack_timeout")]
        pub ack_timeout: HumanDuration,
        /// The queue's `x-delivery-limit`, where it has one; quorum queues have 20 since RabbitMQ 4.0. Beyond it the broker drops
        /// a message, unless the queue has a dead-letter exchange.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub delivery_limit: Option<u32>,
        /// Retries with at least this delay, from 100ms to 1d, wait in queues of the broker named `QUEUE.wait.…`, which are declared
        /// when needed, instead of in this process. They lose their place in the order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub wait_queues_from: Option<HumanDuration>,
        /// The `x-delivery-limit` of the queue of dead letters, where that is a quorum queue; 0 for none. Each `onceward dlq`
        /// command that reads letters and leaves them counts as a delivery; it fails before the limit is reached.
        #[serde(default = "::onceward_plugin::default::count::<20>")]
        pub dead_letter_delivery_limit: u32,
    }
}

const fn default_ack_timeout() -> HumanDuration {
    HumanDuration::new(RabbitmqQueueConfig::DEFAULT_ACK_TIMEOUT)
}

/// Messages of the default prefetch for each handler: as a rule, and where handlers are slow or many.
const MOST_ROUNDS: u32 = 16;
const LEAST_ROUNDS: u32 = 4;
/// Beyond it the default prefetch has only [`LEAST_ROUNDS`] for each handler.
const DEFAULT_PREFETCH: u32 = 1_024;

const LARGEST_PREFETCH: u32 = *RabbitmqQueueConfig::PREFETCH.end() as u32;

/// Headers that a message loses in a delay queue, since the broker replaces them.
const LOST_BY_WAITING: [&str; 4] = ["amqp-exchange", "amqp-routing-key", "amqp-user-id", "amqp-expiration"];

impl RabbitmqSource {
    /// The effective prefetch with so many concurrent handlers that take so long at most.
    pub fn prefetch(&self, concurrency: usize, handler: Duration) -> u32 {
        self.prefetch.unwrap_or_else(|| {
            let concurrency = u32::try_from(concurrency).unwrap_or(u32::MAX);
            let timeout = self.ack_timeout.get();
            let is_long = !timeout.is_zero() && handler.saturating_mul(MOST_ROUNDS) > timeout;
            let most =
                if is_long { 0 } else { concurrency.saturating_mul(MOST_ROUNDS).min(DEFAULT_PREFETCH) };
            concurrency.saturating_mul(LEAST_ROUNDS).max(most).clamp(16, LARGEST_PREFETCH)
        })
    }

    fn endpoint(&self, context: &Context<'_>) -> Result<RabbitmqEndpoint, Error> {
        self.connection().endpoint(context)
    }

    fn dead_letter_problem(&self, to: &str) -> Option<&'static str> {
        // A leading slash marks the rest as the name of a queue.
        if to.strip_prefix('/').unwrap_or(to) == self.queue {
            return Some("is the queue that messages come from");
        }
        to.starts_with(&format!("{}.wait.", self.queue)).then_some("is a wait queue of the source")
    }

    /// A message from a delay queue has another exchange. If the key is made of it, only an authenticated header can restore it.
    fn loses_its_key(&self, context: &Context<'_>) -> bool {
        fn is_lost(source: &KeySource) -> bool {
            match source {
                KeySource::Header(name) => LOST_BY_WAITING.contains(&name.as_str()),
                KeySource::Composite(parts) => parts.iter().any(is_lost),
                _ => false,
            }
        }
        self.wait_queues_from.is_some()
            && context.header_trust == HeaderTrust::Ignore
            && context.key_sources.iter().any(is_lost)
    }
}

#[async_trait]
impl SourcePlugin for RabbitmqSource {
    fn describe(&self, _: &Context<'_>) -> String {
        format!("rabbitmq:{}", self.queue)
    }

    fn facts(&self) -> SourceFacts {
        SourceFacts::BROKER
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.connection().check(context)?;
        check::text(context, "queue", &self.queue)?;
        if let Some(prefetch) = self.prefetch {
            check::within(context, "prefetch", prefetch, 1..=LARGEST_PREFETCH)?;
        }
        if self.delivery_limit == Some(0) {
            return Err(context.problem(
                "delivery_limit",
                "is 0, with which the broker loses each message that is requeued",
                "raise x-delivery-limit on the queue, and write its value here",
            ));
        }
        if let Some(shortest) = self.wait_queues_from {
            check::duration(context, "wait_queues_from", shortest, RabbitmqQueueConfig::WAIT_QUEUES_FROM)?;
            if self.single_active_consumer {
                return Err(context.problem(
                    "wait_queues_from",
                    "gives up the order that single_active_consumer is there to keep",
                    "remove one of the two",
                ));
            }
        }
        if let Some(problem) = context.dead_letter.and_then(|to| self.dead_letter_problem(to.expose())) {
            return Err(Problem::new(
                "dead_letter.to",
                problem,
                "give dead letters a destination of their own",
            ));
        }
        if self.loses_its_key(context) {
            return Err(context.problem(
                "wait_queues_from",
                "gives messages another exchange, while key.from is made of broker facts of the first delivery and nothing proves \
                 those",
                r#"add secret_file to [key], the same for all workers; or take the key from elsewhere in key.from"#,
            ));
        }
        Ok(())
    }

    fn advice(&self, context: &Context<'_>) -> Vec<Finding> {
        self.all_advice(context)
    }

    fn places(&self) -> Vec<Place> {
        vec![Place {
            system: "rabbitmq",
            servers: vec![self.connection().server()],
            name: self.queue.clone(),
        }]
    }

    async fn open(&self, context: &Context<'_>, parts: SourceParts) -> Result<Box<dyn Consumer>, Error> {
        let mut options = RabbitmqConfig::new(String::new(), self.queue.as_str());
        options.endpoint = self.endpoint(context)?;
        // The check has refused what does not fit.
        let prefetch = self.prefetch(context.pipeline.concurrency, context.handler.timeout);
        options.queue.prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
        options.queue.single_active_consumer = self.single_active_consumer;
        options.queue.ack_timeout = Some(self.ack_timeout.get()).filter(|timeout| !timeout.is_zero());
        options.queue.delivery_limit = self.delivery_limit;
        options.queue.wait_queues_from = self.wait_queues_from.map(|shortest| shortest.get());
        options.queue.own_headers = parts.own_headers;
        Ok(Box::new(RabbitmqConsumer::open(options).await?))
    }

    async fn dead_letters(
        &self,
        context: &Context<'_>,
        to: &str,
        own_headers: OwnHeaders,
    ) -> Result<DeadLetters, Error> {
        // A permanently failed message would be held until the queue is declared.
        self.endpoint(context)?.destination_status(to).await.map_err(|error| {
            let what = "see dead_letter.to: its queue or exchange must exist before the first message fails";
            Error::new(error.kind(), "use the destination of dead letters", what).with_source(error)
        })?;
        let publisher = RabbitmqPublisher::open(self.endpoint(context)?).await?.own_headers(own_headers);
        Ok(DeadLetters::new(Arc::new(publisher), to))
    }

    async fn letters(&self, context: &Context<'_>, from: &str, parts: SourceParts) -> Result<Letters, Error> {
        let queue = from.strip_prefix('/').unwrap_or(from);
        if !from.starts_with('/') && from.contains('/') {
            let what = "dead_letter.to names an exchange, from which nothing can be consumed; name the queue that holds its \
                        letters with --from, with a slash in front if its name has one";
            return Err(Error::new(ErrorKind::Config, "take dead letters back", what));
        }
        let (endpoint, own) = (self.endpoint(context)?, parts.own_headers.clone());
        let from = RabbitmqLetters::open(endpoint, queue, own, self.dead_letter_delivery_limit).await?;
        let to = RabbitmqPublisher::open(self.endpoint(context)?).await?.own_headers(parts.own_headers);
        // With a slash in front it is a queue, whatever its name.
        Ok(Letters { from: Box::new(from), to: Arc::new(to), destinations: vec![format!("/{}", self.queue)] })
    }

    async fn publisher(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(RabbitmqPublisher::open(self.endpoint(context)?).await?))
    }

    fn can_reply(&self) -> bool {
        true
    }

    async fn replies(&self, context: &Context<'_>) -> Result<Arc<dyn Replies>, Error> {
        Ok(Arc::new(RabbitmqReplies::open(self.endpoint(context)?, self.queue.as_str()).await?))
    }

    fn describe_publisher(&self, _: &Context<'_>) -> String {
        self.url.redacted()
    }

    async fn backlog(
        &self,
        context: &Context<'_>,
        _: &Scope,
        _: &dyn CheckpointStore,
    ) -> Result<Option<Backlog>, Error> {
        self.waiting(context).await.map(Some)
    }

    async fn dead_letter_status(&self, context: &Context<'_>, to: &str) -> Result<DeadLetterStatus, Error> {
        let found = self.endpoint(context)?.destination_status(to).await?;
        let place = context.dead_letter.map(|to| to.redacted()).unwrap_or_default();
        Ok(DeadLetterStatus { place, letters: found.map(|queue| queue.ready.into()) })
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<Vec<Finding>, Error> {
        let waiting = self.waiting(context).await?;
        Ok(vec![source::answers(context, &self.describe(context), Some(waiting))])
    }

    async fn temporary(&self, context: &Context<'_>, prefix: &str) -> Result<TemporarySource, Error> {
        let queue = TemporaryQueue {
            beside: &self.queue,
            name: format!("{prefix}.{}", self.queue),
            single_active_consumer: self.single_active_consumer,
            delivery_limit: self.delivery_limit,
        };
        let table = Self { queue: queue.name.clone(), wait_queues_from: None, ..self.clone() };
        temporary::create(self.endpoint(context)?, queue, Box::new(table)).await
    }
}

impl RabbitmqSource {
    async fn waiting(&self, context: &Context<'_>) -> Result<Backlog, Error> {
        let queue = self.endpoint(context)?.source_status(&self.queue).await?;
        Ok(Backlog {
            messages: Some(queue.ready.into()),
            bytes: None,
            consumers: Some(queue.consumers.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use onceward_plugin::documentation::{SharedOption, assert_documented};

    use super::*;

    #[test]
    fn table_and_struct_document_the_ranges_and_defaults_of_the_code() {
        let waits = RabbitmqQueueConfig::WAIT_QUEUES_FROM;
        let [shortest, longest] = [waits.start(), waits.end()].map(|wait| HumanDuration::new(*wait));
        assert_documented::<RabbitmqSource>(
            include_str!("../config.rs"),
            &[
                SharedOption {
                    option: "prefetch",
                    field: "prefetch",
                    range: Some(format!("from 1 to {LARGEST_PREFETCH}")),
                    default: Some(RabbitmqQueueConfig::new("q").prefetch.to_string()),
                },
                SharedOption {
                    option: "ack_timeout",
                    field: "ack_timeout",
                    range: None,
                    default: Some(default_ack_timeout().to_string()),
                },
                SharedOption {
                    option: "wait_queues_from",
                    field: "wait_queues_from",
                    range: Some(format!("from {shortest} to {longest}")),
                    default: None,
                },
            ],
        );
    }
}
