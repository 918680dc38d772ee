//! Advice on `[source.rabbitmq]`: what will run, but probably not as intended.

use onceward::pipeline::config::{OnMissingKey, Ordering};
use onceward::pipeline::start_check::HEADROOM;
use onceward_plugin::{Context, Finding, Problem};

use super::source::RabbitmqSource;

impl RabbitmqSource {
    pub(super) fn all_advice(&self, context: &Context<'_>) -> Vec<Finding> {
        let advice = [
            self.idle_concurrency(context),
            self.short_ack_timeout(context),
            self.retries_beyond_ack_timeout(context),
            self.deep_prefetch(context),
            absent_message_id(context),
            self.low_delivery_limit(context),
            self.order_across_workers(context),
        ];
        advice.into_iter().flatten().collect()
    }

    fn idle_concurrency(&self, context: &Context<'_>) -> Option<Finding> {
        let concurrency = context.pipeline.concurrency;
        ((self.prefetch(concurrency, context.handler.timeout) as usize) < concurrency).then(|| {
            context
                .problem(
                    "prefetch",
                    "is less than pipeline.concurrency, so that fewer handlers run at once than may",
                    "raise prefetch or lower concurrency",
                )
                .into_warning("rabbitmq-prefetch-low")
        })
    }

    fn short_ack_timeout(&self, context: &Context<'_>) -> Option<Finding> {
        let (timeout, handler) = (self.ack_timeout.get(), context.handler);
        (!timeout.is_zero() && timeout < handler.timeout).then(|| {
            context.problem(
                "ack_timeout",
                format!(
                    "is shorter than {}.timeout, so that the broker requeues messages whose handlers still run",
                    handler.table
                ),
                "raise the broker's consumer_timeout and write its value here, or lower the handler's timeout",
            ).into_warning("ack-timeout-short")
        })
    }

    /// A message is requeued at three quarters of the timeout and delivered again, which a quorum queue counts.
    fn retries_beyond_ack_timeout(&self, context: &Context<'_>) -> Option<Finding> {
        let timeout = self.ack_timeout.get();
        let longest = context.pipeline.retry.backoff.max;
        if timeout.is_zero() || longest < timeout * 3 / 4 || self.wait_queues_from.is_some() {
            return None;
        }
        Some(context.problem(
            "ack_timeout",
            "is not much longer than retry.max, so messages that wait for a retry are redelivered meanwhile, which uses up the \
             delivery limit of a quorum queue",
            "write wait_queues_from, so that they wait in the broker; or raise consumer_timeout and write its value here",
        ).into_warning("rabbitmq-retries-beyond-ack-timeout"))
    }

    /// The last message received waits for the handlers of all before it.
    fn deep_prefetch(&self, context: &Context<'_>) -> Option<Finding> {
        let (timeout, handler) = (self.ack_timeout.get(), context.handler);
        let concurrency = context.pipeline.concurrency.max(1);
        let prefetch = self.prefetch(concurrency, handler.timeout);
        let rounds = prefetch.div_ceil(u32::try_from(concurrency).unwrap_or(u32::MAX));
        let wait = handler.timeout.saturating_mul(rounds);
        (!timeout.is_zero() && handler.timeout <= timeout && wait > timeout).then(|| {
            context.problem(
                "prefetch",
                format!(
                    "lets messages wait longer than ack_timeout if handlers take as long as {}.timeout allows: they are \
                     redelivered, which uses up the delivery limit of a quorum queue",
                    handler.table
                ),
                "lower prefetch, raise concurrency, or raise consumer_timeout and write its value as ack_timeout",
            ).into_warning("rabbitmq-prefetch-deep")
        })
    }

    /// Retries wait in this process and use no deliveries; crashes and lost connections do.
    fn low_delivery_limit(&self, context: &Context<'_>) -> Option<Finding> {
        let needed = context.pipeline.retry.max_attempts.saturating_add(HEADROOM);
        (self.delivery_limit? < needed).then(|| {
            context.problem(
                "delivery_limit",
                "leaves no room for redeliveries after crashes and lost connections beside retry.max_attempts: beyond it the \
                 broker drops a message, and it is lost unless the queue has a dead-letter exchange",
                format!(
                    "give the queue a dead-letter exchange, and raise x-delivery-limit to {needed} or more, or lower \
                     max_attempts; a small prefetch leaves fewer messages to a crash"
                ),
            ).into_warning("delivery-limit-low")
        })
    }

    /// Lanes order the messages of one worker; between workers only the broker can.
    fn order_across_workers(&self, context: &Context<'_>) -> Option<Finding> {
        let by_key = matches!(context.pipeline.ordering, Ordering::By(_) | Ordering::BrokerKey);
        (by_key && !self.single_active_consumer).then(|| {
            Problem::new(
                "pipeline.ordering",
                "holds within one worker only, unless the queue has a single active consumer",
                "run one worker; or give the queue x-single-active-consumer and write single_active_consumer = true; or use a \
                 consistent-hash exchange",
            ).into_warning("order-within-worker")
        })
    }
}

/// RabbitMQ gives no id of its own, and a queue has no positions.
fn absent_message_id(context: &Context<'_>) -> Option<Finding> {
    let by_default = !(context.is_written)("key.from");
    (by_default && context.pipeline.policies.on_missing_key == OnMissingKey::DeadLetter).then(|| {
        Problem::new(
            "key.from",
            "is not written, so the key is the message id, which RabbitMQ itself gives to no message: each message whose \
             producer sets none is dead-lettered at once",
            r#"write from = ["message-id"] if all producers set it; or name a header or a field, such as "json:/id""#,
        ).into_warning("rabbitmq-message-id-absent")
    })
}
