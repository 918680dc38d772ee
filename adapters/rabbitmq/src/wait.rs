//! Keeps messages that are to come again later in queues of the broker's: [`WaitRoom`].

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use onceward::{Error, Message};

use crate::connection::Connect;
use crate::error;
use crate::line::{Line, Terms};
use crate::outgoing::{Letter, is_of_the_broker};

/// How long publishing into a wait queue may take; then the message is held in the process instead.
const LIMIT: Duration = Duration::from_secs(3);
/// The delays that there are queues for, in milliseconds: from 100 ms to 43 h, each at most half as long again as the one
/// before. A queue has one delay, since only the message at its head can leave it.
const SHORTEST_MS: u64 = 100;
const DELAYS: u32 = 42;
/// For [`QueueConfig::check`](crate::QueueConfig::check): the longest suffix of a wait queue's name.
pub(crate) const SUFFIX_BYTES: usize = ".wait.200000000ms".len();

/// The largest headers, in bytes, that are sent to wait: the broker adds its own on the way back, and a message whose
/// headers fit into no frame any more could not be delivered.
const MOST_HEADER_BYTES: usize = 32 * 1024;
/// What a header takes beyond its name and value.
const HEADER_EXTRA_BYTES: usize = 8;

/// A delivery as it came, to be sent again.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) message: Message,
}

/// The wait queues of one queue. They lose nothing: quorum queues, their messages confirmed on the way in, and on the way
/// back moved by RabbitMQ at least once (its default is at most once), with new ones refused rather than old ones dropped.
pub(crate) struct WaitRoom {
    line: Line,
    queue: String,
    /// Shorter delays are not worth the way.
    shortest: Duration,
    declared: Mutex<HashSet<u64>>,
}

impl WaitRoom {
    /// Connects, and declares the queue of the shortest delay to see that it can be done.
    pub(crate) async fn open(
        connect: Arc<dyn Connect>,
        queue: &str,
        shortest: Duration,
    ) -> Result<Self, Error> {
        let line = Line::open(connect, LIMIT).await?;
        let room = Self { line, queue: queue.to_owned(), shortest, declared: Mutex::default() };
        let declare = async |terms: Terms<'_>| {
            room.declare(terms.channel, delay_ms(shortest)).await?;
            Ok(Vec::new())
        };
        // Its only result is the error, if there is one.
        room.line.publish(1, declare).await.into_iter().collect::<Result<(), Error>>()?;
        Ok(room)
    }

    /// Sends messages to wait, each for at least its time; one result for each, in order. `Ok`: the broker has it, and the
    /// delivery it came from may be acknowledged.
    pub(crate) async fn put<'a>(
        &self,
        batch: impl ExactSizeIterator<Item = (&'a Kept, Duration)>,
    ) -> Vec<Result<(), Error>> {
        let batch: Vec<_> = batch.collect();
        let make = async |terms: Terms<'_>| {
            let mut letters = Vec::with_capacity(batch.len());
            for (kept, after) in &batch {
                let delay_ms = delay_ms(*after);
                self.declare(terms.channel, delay_ms).await?;
                letters.push(letter(kept, &self.name(delay_ms)));
            }
            Ok(letters)
        };
        let results = self.line.publish(batch.len(), make).await;
        if results.iter().any(Result::is_err) {
            // Somebody may have deleted one.
            self.declared().clear();
        }
        results
    }

    /// True if a message is to wait here: its delay is worth it, and it would come back as it was.
    pub(crate) fn takes(&self, kept: &Kept, after: Duration) -> bool {
        let message = &kept.message;
        let headers = message.size() - message.payload().len() + HEADER_EXTRA_BYTES * message.headers().len();
        after >= self.shortest && message.defect().is_none() && headers <= MOST_HEADER_BYTES
    }

    /// The names of the queues that messages may wait in.
    pub(crate) fn queues(&self) -> Vec<String> {
        self.declared().iter().map(|delay_ms| self.name(*delay_ms)).collect()
    }

    fn declared(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, delay_ms: u64) -> String {
        format!("{}.wait.{delay_ms}ms", self.queue)
    }

    async fn declare(&self, channel: &Channel, delay_ms: u64) -> Result<(), Error> {
        if self.declared().contains(&delay_ms) {
            return Ok(());
        }
        let name = self.name(delay_ms);
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut arguments = FieldTable::default();
        for (argument, value) in [
            ("x-queue-type", text("quorum")),
            ("x-message-ttl", AMQPValue::LongLongInt(i64::try_from(delay_ms).unwrap_or(i64::MAX))),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(&self.queue)),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ] {
            arguments.insert(argument.into(), value);
        }
        let operation = || format!("declare the wait queue {name}");
        let short = ShortString::try_new(name.as_str())
            .map_err(|_| error::config(operation(), "its name is too long; shorten the queue's"))?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel
            .queue_declare(short, options, arguments)
            .await
            .map_err(|error| error::amqp(operation(), error))?;
        self.declared().insert(delay_ms);
        Ok(())
    }
}

/// The shortest delay there is a queue for that is not shorter than `after`; the longest if there is none.
fn delay_ms(after: Duration) -> u64 {
    let wanted = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let mut delays = (0..DELAYS).map(|step| {
        let octave = SHORTEST_MS << (step / 2);
        if step % 2 == 0 { octave } else { octave + octave / 2 }
    });
    delays.clone().find(|delay| *delay >= wanted).or(delays.next_back()).unwrap_or(SHORTEST_MS)
}

/// The same message, with what would send it elsewhere or let it die on the way taken off: a `CC` would send copies, and
/// the broker drops what comes back to a queue that its `x-death` names.
fn letter(kept: &Kept, to: &str) -> Result<Letter, Error> {
    let from = &kept.properties;
    let mut headers = FieldTable::default();
    for (name, value) in from.headers().iter().flat_map(|table| table.inner()) {
        if !is_of_the_broker(name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    // The way back is another exchange; where it came from first stays known, and with it a key that is made of it.
    if !kept.exchange.as_str().is_empty() {
        for (name, value) in [("amqp-exchange", &kept.exchange), ("amqp-routing-key", &kept.routing_key)] {
            headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
        }
    }
    let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    macro_rules! copy {
        ($($get:ident $set:ident),+) => {
            $(if let Some(value) = from.$get() {
                properties = properties.$set(value.clone());
            })+
        };
    }
    copy!(
        content_type with_content_type, content_encoding with_content_encoding, priority with_priority,
        correlation_id with_correlation_id, reply_to with_reply_to, message_id with_message_id,
        timestamp with_timestamp, kind with_type, app_id with_app_id
    );
    let routing_key = ShortString::try_new(to)
        .map_err(|_| error::config("publish to a wait queue", "its name is too long; shorten the queue's"))?;
    Ok(Letter {
        exchange: ShortString::default(),
        routing_key,
        properties,
        payload: kept.message.payload().clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_never_shorter_and_at_most_half_as_long_again() {
        for wanted in [1, 99, 100, 101, 150, 151, 200, 1234, 60_000, 3_600_000, 100_000_000_u64] {
            let delay = delay_ms(Duration::from_millis(wanted));
            assert!(delay >= wanted && delay <= (wanted * 3 / 2).max(100), "{wanted}: {delay}");
        }
        assert_eq!(delay_ms(Duration::ZERO), 100);
        assert_eq!(delay_ms(Duration::from_nanos(100_000_001)), 150);
        let longest = delay_ms(Duration::MAX);
        assert!(longest > 43 * 3_600_000 && format!(".wait.{longest}ms").len() <= SUFFIX_BYTES);
    }

    #[test]
    fn what_would_lead_the_message_astray_is_taken_off_and_the_rest_stays() {
        let mut headers = FieldTable::default();
        for name in ["CC", "BCC", "x-death", "x-first-death-queue", "x-delivery-count", "tenant"] {
            headers.insert(name.into(), AMQPValue::LongInt(7));
        }
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_message_id("1".into())
            .with_expiration("5".into())
            .with_user_id("somebody".into())
            .with_type("order".into());
        let kept = Kept {
            exchange: "shop".into(),
            routing_key: "orders.new".into(),
            properties,
            message: Message::builder("pay").build(),
        };
        let letter = letter(&kept, "orders.wait.100ms").unwrap();
        let names: Vec<_> =
            letter.properties.headers().as_ref().unwrap().inner().keys().map(ShortString::as_str).collect();
        assert_eq!(names, ["amqp-exchange", "amqp-routing-key", "tenant"]);
        assert_eq!((letter.properties.expiration(), letter.properties.user_id()), (&None, &None));
        assert_eq!(letter.properties.message_id().as_ref().map(ShortString::as_str), Some("1"));
        assert_eq!(letter.properties.kind().as_ref().map(ShortString::as_str), Some("order"));
        assert_eq!(&letter.payload[..], b"pay");
    }
}
