//! The confirmed way to the broker that publisher and wait queues share: [`Line`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{MaybeDone, maybe_done};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection};
use onceward::{Error, ErrorKind};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::connection::Connect;
use crate::error;
use crate::outgoing::Letter;

const OPERATION: &str = "publish to RabbitMQ";
/// How often a blocked connection is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A connection of its own with a confirming channel, opened again as needed. One batch is under way at a time: what a
/// broker returns cannot be told apart otherwise.
pub(crate) struct Line {
    connect: Arc<dyn Connect>,
    /// How long a batch may take, waiting for the one before, connecting and a blocked broker included.
    pub(crate) limit: Duration,
    /// Taken out while a batch is under way, so that one that is given up leaves no confirms behind for the next.
    open: Mutex<Option<Open>>,
}

struct Open {
    connection: Connection,
    /// `None`: it was given up, with the confirms that nobody waits for any more.
    channel: Option<Channel>,
}

/// What a batch is made for.
pub(crate) struct Terms<'a> {
    pub(crate) channel: &'a Channel,
    /// The largest frame in bytes.
    pub(crate) frame_max: usize,
}

/// A letter, or why there is none.
pub(crate) type Letters = Vec<Result<Letter, Error>>;

impl Line {
    /// Connects.
    pub(crate) async fn open(connect: Arc<dyn Connect>, limit: Duration) -> Result<Self, Error> {
        let open = Open::new(&*connect, None).await?;
        Ok(Self { connect, limit, open: Mutex::new(Some(open)) })
    }

    /// Makes and sends a batch of `count` letters; one result for each, in order. The line is kept only if all went well
    /// with it: a connection that fails says so to those who wait before its own state does.
    ///
    /// # Cancel safety
    /// A dropped call may or may not have sent any of the batch.
    pub(crate) async fn publish(
        &self,
        count: usize,
        make: impl AsyncFnOnce(Terms<'_>) -> Result<Letters, Error>,
    ) -> Vec<Result<(), Error>> {
        let all = |error: &Error| (0..count).map(|_| Err(error.replicate())).collect();
        let late = |why: &str| {
            let limit = self.limit;
            let what = format!("no confirm within {limit:?}: {why}; it is repeated with the same message id");
            error::timeout(OPERATION, what)
        };
        let deadline = Instant::now() + self.limit;
        let Ok(mut slot) = tokio::time::timeout_at(deadline, self.open.lock()).await else {
            return all(&late("the batches before this one are still under way"));
        };
        let open = match tokio::time::timeout_at(deadline, Open::new(&*self.connect, slot.take())).await {
            Ok(Ok(open)) => open,
            Ok(Err(error)) => return all(&error),
            Err(_) => return all(&late("the broker cannot be reached")),
        };
        // On a blocked connection nothing is written; what is sent would pile up in memory, to be repeated anyway.
        while open.connection.status().blocked() {
            if Instant::now() + LOOK >= deadline {
                *slot = Some(open);
                return all(&blocked());
            }
            tokio::time::sleep(LOOK).await;
        }
        let Open { connection, channel } = open;
        let published = async {
            let channel = match channel {
                Some(channel) => channel,
                None => open_channel(&connection).await?,
            };
            let frame_max = match connection.configuration().frame_max() {
                0 => usize::MAX,
                bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
            };
            let letters = make(Terms { channel: &channel, frame_max }).await?;
            let (results, sound) = publish(&channel, &letters).await;
            Ok::<_, Error>((results, sound.then_some(channel)))
        };
        match tokio::time::timeout_at(deadline, published).await {
            Ok(Ok((results, Some(channel)))) => {
                *slot = Some(Open { connection, channel: Some(channel) });
                results
            }
            Ok(Ok((results, None))) => results,
            Ok(Err(error)) => all(&error),
            // Only the channel goes, and with it the confirms that nobody waits for any more.
            Err(_) if connection.status().blocked() => {
                *slot = Some(Open { connection, channel: None });
                all(&blocked())
            }
            Err(_) => all(&late("the broker has not confirmed it")),
        }
    }
}

fn blocked() -> Error {
    let what = "the broker blocks publishers because it is short of memory or disk; see its alarms";
    Error::new(ErrorKind::Throttled, OPERATION, what)
}

impl Open {
    /// The former one as far as it is open, or a new one.
    async fn new(connect: &dyn Connect, former: Option<Self>) -> Result<Self, Error> {
        match former {
            Some(Self { connection, channel }) if connection.status().connected() => {
                let channel = channel.filter(|channel| channel.status().connected());
                Ok(Self { connection, channel })
            }
            _ => Ok(Self { connection: connect.connect().await?.connection, channel: None }),
        }
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
async fn publish(channel: &Channel, letters: &Letters) -> (Vec<Result<(), Error>>, bool) {
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
