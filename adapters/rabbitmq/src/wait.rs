//! Keeps messages that are to come again later in queues of the broker's: [`WaitRoom`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use onceward::{Error, ErrorKind, Message, Native, OwnHeaders};
use tokio::time::Instant;

use crate::config::QueueConfig;
use crate::connection::Connect;
use crate::error;
use crate::line::{Line, Terms};
use crate::native::{self, RabbitForm, copied, is_of_the_broker};
use crate::outgoing::Letter;

/// How long publishing into a wait queue may take; then the message is held in the process instead.
const LIMIT: Duration = Duration::from_secs(3);
/// The delays that there are queues for: from 100 ms to 43 h, each at most half as long again as the one
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

/// Pauses between attempts to declare a queue that cannot be declared grow from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The wait queues of one queue. They lose nothing: quorum queues, their messages confirmed on the way in, and on the way
/// back moved by RabbitMQ at least once (its default is at most once), with new ones refused rather than old ones dropped.
pub(crate) struct WaitRoom {
    line: Line,
    queue: String,
    own: OwnHeaders,
    /// Shorter delays are not worth the way.
    shortest: Duration,
    known: Mutex<Known>,
}

/// Delays in milliseconds.
#[derive(Default)]
struct Known {
    /// Those whose queues are there.
    declared: BTreeSet<u64>,
    /// Those whose queues cannot be declared: the others go on.
    failed: HashMap<u64, Failed>,
}

struct Failed {
    again_at: Instant,
    pause: Duration,
}

impl WaitRoom {
    /// Connects, and declares the queue of the shortest delay to see that it can be done.
    ///
    /// # Errors
    /// The broker cannot be reached or refuses the right. A queue of that name with other arguments is no error: it
    /// concerns its own delay only.
    pub(crate) async fn open(
        connect: Arc<dyn Connect>,
        queue: &QueueConfig,
        shortest: Duration,
    ) -> Result<Self, Error> {
        let line = Line::open(connect, LIMIT).await?;
        let (queue, own) = (queue.name.clone(), queue.own_headers.clone());
        let room = Self { line, queue, own, shortest, known: Mutex::default() };
        let declare = async |terms: Terms<'_>| {
            let declared = room.declare(terms.connection, delay_ms(shortest)).await;
            declared.err().map(Err).into_iter().collect()
        };
        // Its only result is the error, if there is one.
        match room.line.publish(1, declare).await.into_iter().find_map(Result::err) {
            Some(error) if error.kind() != ErrorKind::Config => Err(error),
            _ => Ok(room),
        }
    }

    /// Sends messages to wait, each for at least its time; one result for each, in order. `Ok`: the broker has it, and the
    /// delivery it came from may be acknowledged.
    pub(crate) async fn put<'a>(
        &self,
        batch: impl ExactSizeIterator<Item = (&'a Message, Duration)>,
    ) -> Vec<Result<(), Error>> {
        let batch: Vec<_> = batch.map(|(message, after)| (message, delay_ms(after))).collect();
        let make = async |terms: Terms<'_>| {
            let mut ready = HashMap::new();
            for delay_ms in batch.iter().map(|(_, delay_ms)| *delay_ms).collect::<BTreeSet<_>>() {
                ready.insert(delay_ms, self.declare(terms.connection, delay_ms).await);
            }
            let letter = |(message, delay_ms): &(&Message, u64)| match ready.get(delay_ms) {
                Some(Err(error)) => Err(error.clone()),
                _ => letter(message, &self.name(*delay_ms), &self.own),
            };
            batch.iter().map(letter).collect()
        };
        let results = self.line.publish(batch.len(), make).await;
        for ((_, delay_ms), result) in batch.iter().zip(&results) {
            if result.is_err() {
                // Somebody may have deleted it.
                self.forget(*delay_ms);
            }
        }
        results
    }

    /// True if a message is to wait here: its delay is worth it, there can be a queue for it, and it would come back as it
    /// was.
    pub(crate) fn takes(&self, message: &Message, after: Duration) -> bool {
        let headers = message.size() - message.payload().len() + HEADER_EXTRA_BYTES * message.headers().len();
        let can_be_declared = || {
            self.known().failed.get(&delay_ms(after)).is_none_or(|failed| failed.again_at <= Instant::now())
        };
        after >= self.shortest
            && message.defect().is_none()
            && headers <= MOST_HEADER_BYTES
            && can_be_declared()
    }

    /// The names of the queues that messages of this process may wait in.
    pub(crate) fn declared(&self) -> Vec<(u64, String)> {
        self.known().declared.iter().map(|delay_ms| (*delay_ms, self.name(*delay_ms))).collect()
    }

    /// The names of all queues that messages may wait in, of whichever process.
    pub(crate) fn possible(&self) -> Vec<(u64, String)> {
        delays().map(|delay_ms| (delay_ms, self.name(delay_ms))).collect()
    }

    /// There is a queue for this delay.
    pub(crate) fn found(&self, delay_ms: u64) {
        self.known().declared.insert(delay_ms);
    }

    /// There may be no queue for this delay any more: the next message for it declares it again.
    pub(crate) fn forget(&self, delay_ms: u64) {
        self.known().declared.remove(&delay_ms);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, delay_ms: u64) -> String {
        format!("{}.wait.{delay_ms}ms", self.queue)
    }

    /// Declares the queue for a delay if that was not done yet, on a channel of its own: a refusal closes the channel.
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
                    tracing::info!(queue = name, "the wait queue could be declared");
                }
            }
            // A connection that is lost says nothing of the queue.
            Err(_) if !connection.status().connected() => {}
            Err(error) => {
                let pause = failed.as_ref().map_or(FIRST_PAUSE, |failed| (failed.pause * 2).min(LAST_PAUSE));
                known.failed.insert(delay_ms, Failed { again_at: Instant::now() + pause, pause });
                if failed.is_none() {
                    tracing::warn!(
                        queue = name,
                        ?error,
                        "a wait queue cannot be declared; messages with this delay wait in this process, unacknowledged"
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
        ("x-queue-type", native::text("quorum")),
        ("x-message-ttl", AMQPValue::LongLongInt(i64::try_from(delay_ms).unwrap_or(i64::MAX))),
        ("x-dead-letter-exchange", native::text("")),
        ("x-dead-letter-routing-key", native::text(back_to)),
        ("x-dead-letter-strategy", native::text("at-least-once")),
        ("x-overflow", native::text("reject-publish")),
    ] {
        arguments.insert(argument.into(), value);
    }
    let operation = || format!("declare the wait queue {name}");
    let failed = |error| error::amqp(operation(), error);
    let short = ShortString::try_new(name)
        .map_err(|_| error::config(operation(), "its name is too long; shorten the queue's"))?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let channel = connection.create_channel().await.map_err(failed)?;
    channel.queue_declare(short, options, arguments).await.map_err(failed)?;
    let _ = channel.close(200, "OK".into()).await;
    Ok(())
}

/// The delays that there may be queues for, in milliseconds, from the shortest to the longest.
fn delays() -> impl DoubleEndedIterator<Item = u64> + Clone {
    (0..DELAYS).map(|step| {
        let octave = SHORTEST_MS << (step / 2);
        if step % 2 == 0 { octave } else { octave + octave / 2 }
    })
}

/// The shortest delay there is a queue for that is not shorter than `after`; the longest if there is none.
fn delay_ms(after: Duration) -> u64 {
    let wanted = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    delays().find(|delay| *delay >= wanted).or(delays().next_back()).unwrap_or(SHORTEST_MS)
}

/// The same message, with what would send it elsewhere or let it die on the way taken off: a `CC` would send copies, and
/// the broker drops what comes back to a queue that its `x-death` names.
fn letter(message: &Message, to: &str, own: &OwnHeaders) -> Result<Letter, Error> {
    let refused = |what| error::config("publish to a wait queue", what);
    let form = message.native().and_then(Native::get::<RabbitForm>);
    let form =
        form.ok_or_else(|| refused("the message is not RabbitMQ's; this is a fault of the program"))?;
    let theirs =
        |name: &str| !is_of_the_broker(name) && !native::passes_for_fact(name) && name != native::FACTS_MAC;
    let mut headers: BTreeMap<ShortString, AMQPValue> = form
        .headers()
        .filter(|(name, _)| theirs(name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    // The way back is another exchange; where it came from first stays known, and with it a key that is made of it. As
    // properties the expiration would let the broker delete the message and the user id would be refused.
    for name in native::FACTS {
        if let Some(value) = message.header(name) {
            headers.insert((*name).into(), native::text(value));
        }
    }
    native::seal_facts(&mut headers, own, message.payload());
    let properties = copied(&form.properties, false).with_headers(headers.into());
    let routing_key =
        ShortString::try_new(to).map_err(|_| refused("its name is too long; shorten the queue's"))?;
    Ok(Letter {
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
        for name in
            ["CC", "BCC", "x-death", "x-first-death-queue", "x-delivery-count", "tenant", "AMQP_user-id"]
        {
            headers.insert(name.into(), AMQPValue::LongInt(7));
        }
        let properties = lapin::BasicProperties::default()
            .with_headers(headers)
            .with_message_id("1".into())
            .with_expiration("5".into())
            .with_user_id("somebody".into())
            .with_type("order".into());
        let mut delivery =
            lapin::message::Delivery::mock(1, "shop".into(), "orders.new".into(), false, b"pay".to_vec());
        delivery.properties = properties;
        let message = crate::message::from(delivery, "orders".into(), None, &OwnHeaders::default());
        let letter = letter(&message, "orders.wait.100ms", &OwnHeaders::default()).unwrap();
        let names: Vec<_> =
            letter.properties.headers().as_ref().unwrap().inner().keys().map(ShortString::as_str).collect();
        let facts = [native::EXCHANGE, native::EXPIRATION, native::ROUTING_KEY, native::USER_ID];
        assert_eq!(names, [&facts[..], &["tenant"]].concat());
        assert_eq!((letter.properties.expiration(), letter.properties.user_id()), (&None, &None));
        assert_eq!(letter.properties.message_id().as_ref().map(ShortString::as_str), Some("1"));
        assert_eq!(letter.properties.kind().as_ref().map(ShortString::as_str), Some("order"));
        assert_eq!(&letter.payload[..], b"pay");
    }
}
