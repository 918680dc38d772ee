//! Delays redelivery with TTL queues on the broker: [`DelayQueues`].

pub(crate) mod delay_steps;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use onceward::adapter::Native;
use onceward::{Error, ErrorKind, Message, OwnHeaders};
use tokio::time::Instant;

use self::delay_steps::{all_delays_ms, round_up_ms};
use crate::config::RabbitmqQueueConfig;
use crate::connection::connector::AmqpConnector;
use crate::error;
use crate::format::native::{self, RabbitmqForm, copy_properties, is_broker_header};
use crate::publish::confirm_channel::{ConfirmChannel, PublishContext};
use crate::publish::publishing::Publishing;

/// The timeout of publishing to a delay queue; after it the message is held in the process instead.
const LIMIT: Duration = Duration::from_secs(3);
/// The largest headers, in bytes, of a message in a delay queue: the broker adds its own on the way back, and a message
/// whose headers exceed a frame could not be delivered.
const MOST_HEADER_BYTES: usize = 32 * 1024;
/// The size of a header beyond its name and value, in bytes.
const HEADER_EXTRA_BYTES: usize = 8;

/// The shortest and the longest pause before a failed declaration is repeated.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The delay queues of one queue.
///
/// They lose no message: they are quorum queues, publishing to them is confirmed, RabbitMQ moves messages back at least
/// once (its default is at most once), and a full queue rejects new messages instead of dropping old ones.
pub(crate) struct DelayQueues {
    channel: ConfirmChannel,
    queue: String,
    own: OwnHeaders,
    /// Shorter delays are spent in the process.
    shortest: Duration,
    known: Mutex<DeclarationState>,
}

/// Declarations by delay in milliseconds.
#[derive(Default)]
struct DeclarationState {
    /// The delays with a declared queue.
    declared: BTreeSet<u64>,
    /// The delays whose queue could not be declared; the others are not affected.
    failed: HashMap<u64, FailedDeclaration>,
}

struct FailedDeclaration {
    again_at: Instant,
    pause: Duration,
}

impl DelayQueues {
    /// Connects, and declares the queue of the shortest delay to verify the rights.
    ///
    /// # Errors
    /// The broker cannot be reached or refuses. An existing queue with other arguments is not an error: it affects its
    /// own delay only.
    pub(crate) async fn open(
        connect: Arc<dyn AmqpConnector>,
        queue: &RabbitmqQueueConfig,
        shortest: Duration,
    ) -> Result<Self, Error> {
        let channel = ConfirmChannel::open(connect, LIMIT).await?;
        let (queue, own) = (queue.name.clone(), queue.own_headers.clone());
        let queues = Self { channel, queue, own, shortest, known: Mutex::default() };
        let declare = async |context: PublishContext<'_>| {
            let declared = queues.declare(context.connection, round_up_ms(shortest)).await;
            declared.err().map(Err).into_iter().collect()
        };
        // The only possible result is an error.
        match queues.channel.publish(1, declare).await.into_iter().find_map(Result::err) {
            Some(error) if error.kind() != ErrorKind::Config => Err(error),
            _ => Ok(queues),
        }
    }

    /// Publishes messages to delay queues, each for at least its delay; one result for each, in order. `Ok`: the broker
    /// confirmed it, and the original delivery may be acknowledged.
    pub(crate) async fn publish<'a>(
        &self,
        batch: impl ExactSizeIterator<Item = (&'a Message, Duration)>,
    ) -> Vec<Result<(), Error>> {
        let batch: Vec<_> = batch.map(|(message, after)| (message, round_up_ms(after))).collect();
        let make = async |context: PublishContext<'_>| {
            let mut ready = HashMap::new();
            for delay_ms in batch.iter().map(|(_, delay_ms)| *delay_ms).collect::<BTreeSet<_>>() {
                let declared = self.declare(context.connection, delay_ms).await;
                let is_lost = declared.as_ref().is_err_and(error::is_of_connection);
                ready.insert(delay_ms, declared);
                if is_lost {
                    // Then none of the batch is sent.
                    break;
                }
            }
            let letter = |(message, delay_ms): &(&Message, u64)| match ready.get(delay_ms) {
                Some(Err(error)) => Err(error.clone()),
                _ => to_publishing(message, &self.name(*delay_ms), &self.own),
            };
            batch.iter().map(letter).collect()
        };
        let results = self.channel.publish(batch.len(), make).await;
        for ((_, delay_ms), result) in batch.iter().zip(&results) {
            if result.is_err() {
                // The queue may have been deleted.
                self.mark_missing(*delay_ms);
            }
        }
        results
    }

    /// True if a message can be delayed on the broker: its delay is long enough, its queue can be declared, and it
    /// would return unchanged.
    pub(crate) fn accepts(&self, message: &Message, after: Duration) -> bool {
        let headers = message.size() - message.payload().len() + HEADER_EXTRA_BYTES * message.headers().len();
        let can_be_declared = || {
            self.known()
                .failed
                .get(&round_up_ms(after))
                .is_none_or(|failed| failed.again_at <= Instant::now())
        };
        after >= self.shortest
            && message.defect().is_none()
            && headers <= MOST_HEADER_BYTES
            && can_be_declared()
    }

    /// The delays and names of the queues that this process uses.
    pub(crate) fn declared(&self) -> Vec<(u64, String)> {
        self.known().declared.iter().map(|delay_ms| (*delay_ms, self.name(*delay_ms))).collect()
    }

    /// The delays and names of all queues that any process may use.
    pub(crate) fn possible(&self) -> Vec<(u64, String)> {
        all_delays_ms().map(|delay_ms| (delay_ms, self.name(delay_ms))).collect()
    }

    /// Records that the queue of a delay exists.
    pub(crate) fn mark_declared(&self, delay_ms: u64) {
        self.known().declared.insert(delay_ms);
    }

    /// Records that the queue of a delay may be missing: the next message for it declares it again.
    pub(crate) fn mark_missing(&self, delay_ms: u64) {
        self.known().declared.remove(&delay_ms);
    }

    fn known(&self) -> MutexGuard<'_, DeclarationState> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, delay_ms: u64) -> String {
        format!("{}.wait.{delay_ms}ms", self.queue)
    }

    /// Declares the queue of a delay unless this was done, on a channel of its own: a refusal closes the channel.
    async fn declare(&self, connection: &Connection, delay_ms: u64) -> Result<(), Error> {
        if self.known().declared.contains(&delay_ms) {
            return Ok(());
        }
        let name = self.name(delay_ms);
        let declared = declare(connection, &name, &self.queue, delay_ms).await;
        let mut known = self.known();
        let failed = known.failed.remove(&delay_ms);
        match &declared {
            Ok(()) => {
                known.declared.insert(delay_ms);
                if failed.is_some() {
                    tracing::info!(queue = name, "delay queue declared");
                }
            }
            // A lost connection is not a failed declaration.
            Err(error) if error::is_of_connection(error) || !connection.status().connected() => {}
            Err(error) => {
                let pause = failed.as_ref().map_or(FIRST_PAUSE, |failed| (failed.pause * 2).min(LAST_PAUSE));
                known.failed.insert(delay_ms, FailedDeclaration { again_at: Instant::now() + pause, pause });
                if failed.is_none() {
                    tracing::warn!(
                        queue = name,
                        ?error,
                        "declaring a delay queue failed; messages with this delay are held in this process, unacknowledged"
                    );
                }
            }
        }
        declared
    }
}

async fn declare(connection: &Connection, name: &str, back_to: &str, delay_ms: u64) -> Result<(), Error> {
    let mut arguments = FieldTable::default();
    for (argument, value) in [
        ("x-queue-type", native::long_string("quorum")),
        ("x-message-ttl", AMQPValue::LongLongInt(i64::try_from(delay_ms).unwrap_or(i64::MAX))),
        ("x-dead-letter-exchange", native::long_string("")),
        ("x-dead-letter-routing-key", native::long_string(back_to)),
        ("x-dead-letter-strategy", native::long_string("at-least-once")),
        ("x-overflow", native::long_string("reject-publish")),
    ] {
        arguments.insert(argument.into(), value);
    }
    let operation = || format!("declare the delay queue {name}");
    let failed = |error| error::classify(operation(), error);
    let short = ShortString::try_new(name)
        .map_err(|_| error::config(operation(), "its name is too long; shorten the queue name"))?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let channel = connection.create_channel().await.map_err(failed)?;
    channel.queue_declare(short, options, arguments).await.map_err(failed)?;
    let _ = channel.close(200, "OK".into()).await;
    Ok(())
}

/// Builds the copy of a message for a delay queue, without the headers that would route it elsewhere or make the broker
/// drop it: `CC` would send copies, and the broker drops a message that returns to a queue named in its `x-death`.
fn to_publishing(message: &Message, to: &str, own: &OwnHeaders) -> Result<Publishing, Error> {
    let refused = |what| error::config("publish to a delay queue", what);
    let form = message.native().and_then(Native::get::<RabbitmqForm>);
    let form = form.ok_or_else(|| refused("the message is not from RabbitMQ; this is a bug"))?;
    let is_producers =
        |name: &str| !is_broker_header(name) && !native::imitates_fact(name) && name != native::FACTS_MAC;
    let mut headers: BTreeMap<ShortString, AMQPValue> = form
        .headers()
        .filter(|(name, _)| is_producers(name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    // The message returns through another exchange; its original exchange and routing key stay known, and with them a
    // key that is made of them. As properties, the expiration would let the broker delete the message, and the user id
    // would be refused.
    for name in native::FACTS {
        if let Some(value) = message.header(name) {
            headers.insert((*name).into(), native::long_string(value));
        }
    }
    native::seal_facts(&mut headers, own, message.payload());
    let properties = copy_properties(&form.properties, false).with_headers(headers.into());
    let routing_key =
        ShortString::try_new(to).map_err(|_| refused("its name is too long; shorten the queue name"))?;
    Ok(Publishing {
        exchange: ShortString::default(),
        routing_key,
        properties,
        payload: message.payload().clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_headers_are_removed_and_the_others_kept() {
        let mut headers = FieldTable::default();
        for name in
            ["CC", "BCC", "x-death", "x-first-death-queue", "x-delivery-count", "tenant", "AMQP_user-id"]
        {
            headers.insert(name.into(), AMQPValue::LongInt(7));
        }
        let properties = lapin::BasicProperties::default()
            .with_headers(headers)
            .with_message_id("1".into())
            .with_expiration("5".into())
            .with_user_id("producer".into())
            .with_type("order".into());
        let mut delivery =
            lapin::message::Delivery::mock(1, "shop".into(), "orders.new".into(), false, b"pay".to_vec());
        delivery.properties = properties;
        let message = crate::message::to_message(delivery, "orders".into(), None, &OwnHeaders::default());
        let copy = to_publishing(&message, "orders.wait.100ms", &OwnHeaders::default()).unwrap();
        let names: Vec<_> =
            copy.properties.headers().as_ref().unwrap().inner().keys().map(ShortString::as_str).collect();
        let facts = [native::EXCHANGE, native::EXPIRATION, native::ROUTING_KEY, native::USER_ID];
        assert_eq!(names, [&facts[..], &["tenant"]].concat());
        assert_eq!((copy.properties.expiration(), copy.properties.user_id()), (&None, &None));
        assert_eq!(copy.properties.message_id().as_ref().map(ShortString::as_str), Some("1"));
        assert_eq!(copy.properties.kind().as_ref().map(ShortString::as_str), Some("order"));
        assert_eq!(&copy.payload[..], b"pay");
    }
}
