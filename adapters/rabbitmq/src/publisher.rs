//! Publishes, confirmed, on a connection of its own: [`RabbitPublisher`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{MaybeDone, maybe_done};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection};
use onceward::{Error, ErrorKind, Outgoing, Publisher};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::connection::{Connect, Factory};
use crate::endpoint::Endpoint;
use crate::error;
use crate::outgoing::Letter;

const OPERATION: &str = "publish to RabbitMQ";
/// How often a blocked connection is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Publishes messages, persistent and confirmed by the broker. A message that no queue takes is an error.
///
/// A destination is the name of a queue, or `exchange/routing-key`; a queue whose name has slashes in it is written with
/// one in front. The header names that [`RabbitConsumer`](crate::RabbitConsumer) gives to properties become these
/// properties again; [`Outgoing::id`] becomes the message id.
///
/// It has a connection of its own, for RabbitMQ blocks publishing connections as a whole while it is short of memory or disk.
/// It connects again by itself. One batch is under way at a time: what a broker returns cannot be told apart otherwise.
pub struct RabbitPublisher {
    connect: Arc<dyn Connect>,
    limit: Duration,
    /// Taken out while a batch is under way, so that one that is given up leaves no confirms behind for the next.
    line: Mutex<Option<Line>>,
}

struct Line {
    connection: Connection,
    /// `None`: it was given up, with the confirms that nobody waits for any more.
    channel: Option<Channel>,
}

impl RabbitPublisher {
    /// How long a batch may take by default, connecting and a blocked broker included.
    pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(8);

    /// Connects.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the endpoint's values cannot be used, [`ErrorKind::Denied`] if the broker refuses,
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] if it cannot be reached.
    pub async fn open(endpoint: Endpoint) -> Result<Self, Error> {
        endpoint.check()?;
        Self::opened(Arc::new(endpoint)).await
    }

    /// Publishes on a connection that `factory` makes; it is called again whenever the connection is lost. Each connection
    /// should be new, not that of a consumer, and without automatic recovery.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn from_connection<F, Fut>(factory: F) -> Result<Self, Error>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = lapin::Result<Connection>> + Send + 'static,
    {
        Self::opened(Arc::new(Factory(factory))).await
    }

    async fn opened(connect: Arc<dyn Connect>) -> Result<Self, Error> {
        let line = Line::open(&*connect, None).await?;
        Ok(Self { connect, limit: Self::CONFIRM_TIMEOUT, line: Mutex::new(Some(line)) })
    }

    /// Sets how long a batch may take until its outcome is called unknown. It should be less than the pipeline's publish
    /// timeout, so that the error says what was wrong.
    #[must_use]
    pub fn confirm_timeout(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends a batch on a line that is open. The line is kept only if all went well with it: a connection that fails says
    /// so to those who wait before its own state does.
    async fn send(&self, batch: &[Outgoing], deadline: Instant) -> Vec<Result<(), Error>> {
        let mut slot = match tokio::time::timeout_at(deadline, self.line.lock()).await {
            Ok(slot) => slot,
            Err(_) => {
                return all(batch, &late(self.limit, "the batches before this one are still under way"));
            }
        };
        let line = match tokio::time::timeout_at(deadline, Line::open(&*self.connect, slot.take())).await {
            Ok(Ok(line)) => line,
            Ok(Err(error)) => return all(batch, &error),
            Err(_) => return all(batch, &late(self.limit, "the broker cannot be reached")),
        };
        // On a blocked connection nothing is written; what is sent would pile up in memory, to be repeated anyway.
        while line.is_blocked() {
            if Instant::now() + LOOK >= deadline {
                *slot = Some(line);
                return all(batch, &blocked());
            }
            tokio::time::sleep(LOOK).await;
        }
        let Line { connection, channel } = line;
        let published = async {
            let channel = match channel {
                Some(channel) => channel,
                None => open_channel(&connection).await?,
            };
            let (results, sound) = publish(&connection, &channel, batch).await;
            Ok::<_, Error>((results, sound.then_some(channel)))
        };
        match tokio::time::timeout_at(deadline, published).await {
            Ok(Ok((results, Some(channel)))) => {
                *slot = Some(Line { connection, channel: Some(channel) });
                results
            }
            Ok(Ok((results, None))) => results,
            Ok(Err(error)) => all(batch, &error),
            // Only the channel goes, and with it the confirms that nobody waits for any more.
            Err(_) if connection.status().blocked() => {
                *slot = Some(Line { connection, channel: None });
                all(batch, &blocked())
            }
            Err(_) => all(batch, &late(self.limit, "the broker has not confirmed it")),
        }
    }
}

fn all(batch: &[Outgoing], error: &Error) -> Vec<Result<(), Error>> {
    batch.iter().map(|_| Err(error.replicate())).collect()
}

fn late(limit: Duration, why: &str) -> Error {
    error::timeout(
        OPERATION,
        format!("no confirm within {limit:?}: {why}; it is repeated with the same message id"),
    )
}

fn blocked() -> Error {
    let what = "the broker blocks publishers because it is short of memory or disk; see its alarms";
    Error::new(ErrorKind::Throttled, OPERATION, what)
}

impl Line {
    /// The former line as far as it is open, or a new one.
    async fn open(connect: &dyn Connect, former: Option<Self>) -> Result<Self, Error> {
        match former {
            Some(Self { connection, channel }) if connection.status().connected() => {
                let channel = channel.filter(|channel| channel.status().connected());
                Ok(Self { connection, channel })
            }
            _ => Ok(Self { connection: connect.connect().await?.connection, channel: None }),
        }
    }

    fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }
}

async fn open_channel(connection: &Connection) -> Result<Channel, Error> {
    let open = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    };
    open.await.map_err(|error| error::amqp(OPERATION, error))
}

/// Publishes all, then waits for all confirms. False: the channel failed.
async fn publish(
    connection: &Connection,
    channel: &Channel,
    batch: &[Outgoing],
) -> (Vec<Result<(), Error>>, bool) {
    let frame_max = match connection.configuration().frame_max() {
        0 => usize::MAX,
        bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
    };
    let letters: Vec<_> = batch.iter().map(|outgoing| Letter::new(outgoing, frame_max)).collect();
    let mut sending: Vec<Pin<Box<MaybeDone<_>>>> = Vec::with_capacity(letters.len());
    for letter in letters.iter().flatten() {
        let mut confirmed = Box::pin(maybe_done(send(channel, letter)));
        // The first poll queues it: they go out in the order of the batch.
        let _ = futures_util::poll!(&mut confirmed);
        sending.push(confirmed);
    }
    let mut confirmations = Vec::with_capacity(sending.len());
    for mut confirmed in sending {
        confirmed.as_mut().await;
        confirmations.push(confirmed.as_mut().take_output());
    }
    let sound = confirmations.iter().all(|confirmation| matches!(confirmation, Some(Ok(_))));
    let mut returned = Vec::new();
    let mut confirmations = confirmations.into_iter();
    let mut results: Vec<_> = letters
        .iter()
        .map(|letter| match letter {
            Ok(_) => outcome(confirmations.next().flatten(), &mut returned),
            Err(error) => Err(error.replicate()),
        })
        .collect();
    // A confirm may carry the message that another one got back: they are told apart by what they are.
    for (letter, result) in letters.iter().zip(&mut results) {
        if let Ok(letter) = letter
            && let Some(message) = returned.iter().find(|message| is_of(message, letter))
        {
            *result = Err(unroutable(letter, message));
        }
    }
    (results, sound)
}

async fn send(channel: &Channel, letter: &Letter) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (exchange, routing_key) = (letter.exchange.clone(), letter.routing_key.clone());
    let sent =
        channel.basic_publish(exchange, routing_key, options, &letter.payload, letter.properties.clone());
    sent.await?.await
}

fn outcome(
    confirmation: Option<lapin::Result<Confirmation>>,
    returned: &mut Vec<BasicReturnMessage>,
) -> Result<(), Error> {
    match confirmation {
        Some(Ok(Confirmation::Ack(message))) => {
            returned.extend(message);
            Ok(())
        }
        Some(Ok(Confirmation::Nack(message))) => {
            returned.extend(message);
            let what =
                "the broker refused it; the queue may be full (x-overflow=reject-publish) or have no leader";
            Err(Error::new(ErrorKind::Unavailable, OPERATION, what))
        }
        Some(Err(error)) => Err(error::amqp(OPERATION, error)),
        Some(Ok(Confirmation::NotRequested)) | None => Err(Error::new(
            ErrorKind::Internal,
            OPERATION,
            "the channel does not confirm; this is a fault of the program",
        )),
    }
}

fn is_of(message: &BasicReturnMessage, letter: &Letter) -> bool {
    message.exchange == letter.exchange
        && message.routing_key == letter.routing_key
        && message.properties.message_id() == letter.properties.message_id()
}

fn unroutable(letter: &Letter, message: &BasicReturnMessage) -> Error {
    let place = match letter.exchange.as_str() {
        "" => format!("there is no queue {}", letter.routing_key),
        exchange => format!("exchange {exchange} has no queue for routing key {}", letter.routing_key),
    };
    let what =
        format!("the broker returned it ({}): {place}; declare the queue or its binding", message.reply_code);
    Error::new(ErrorKind::Unavailable, OPERATION, what)
}

#[async_trait]
impl Publisher for RabbitPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        if batch.is_empty() {
            return Vec::new();
        }
        self.send(batch, Instant::now() + self.limit).await
    }
}
