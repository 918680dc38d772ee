//! Publishes letters on one channel and waits for their confirms: [`publish`].

use std::pin::Pin;

use futures_util::future::{MaybeDone, maybe_done};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use onceward::dead_letter::HEADER_ID;
use onceward::{Error, ErrorKind};

use crate::error;
use crate::outgoing::Letter;

pub(crate) const OPERATION: &str = "publish to RabbitMQ";

/// How one letter ended.
pub(crate) enum Outcome {
    /// The broker said what became of it.
    Answered(Result<(), Error>),
    /// The channel or the connection ended before the broker said so.
    Cut(lapin::Error),
}

/// Opens a channel that confirms.
pub(crate) async fn open_channel(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Publishes all, then waits for all confirms; one outcome for each letter, in order.
///
/// # Cancel safety
/// A dropped call may or may not have sent any of them, and leaves confirms behind on the channel.
pub(crate) async fn publish(channel: &Channel, letters: &[&Letter]) -> Vec<Outcome> {
    let mut sending: Vec<Pin<Box<MaybeDone<_>>>> = Vec::with_capacity(letters.len());
    for letter in letters {
        let mut confirmed = Box::pin(maybe_done(send(channel, letter)));
        // The first poll queues it: they go out in the order of the batch.
        let _ = futures_util::poll!(&mut confirmed);
        sending.push(confirmed);
    }
    let mut outcomes = Vec::with_capacity(sending.len());
    let mut returned = Vec::new();
    for mut confirmed in sending {
        confirmed.as_mut().await;
        outcomes.push(outcome(confirmed.as_mut().take_output(), &mut returned));
    }
    // A confirm may carry the message that another one got back: they are told apart by what they are.
    for (letter, outcome) in letters.iter().zip(&mut outcomes) {
        if let Some(message) = returned.iter().find(|message| is_of(message, letter)) {
            *outcome = Outcome::Answered(Err(unroutable(letter, message)));
        }
    }
    outcomes
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
) -> Outcome {
    Outcome::Answered(match confirmation {
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
        Some(Err(error)) => return Outcome::Cut(error),
        Some(Ok(Confirmation::NotRequested)) | None => Err(Error::new(
            ErrorKind::Internal,
            OPERATION,
            "the channel does not confirm; this is a fault of the program",
        )),
    })
}

/// Two letters of one batch with the same address, message id and id of ours are copies of one message.
fn is_of(message: &BasicReturnMessage, letter: &Letter) -> bool {
    message.exchange == letter.exchange
        && message.routing_key == letter.routing_key
        && message.properties.message_id() == letter.properties.message_id()
        && own_id(&message.properties) == own_id(&letter.properties)
}

/// Our own id in the headers.
pub(crate) fn own_id(properties: &BasicProperties) -> Option<&[u8]> {
    let id = properties.headers().as_ref()?.inner().get(HEADER_ID)?;
    id.as_long_string().map(|id| id.as_bytes()).or(match id {
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice()),
        _ => None,
    })
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

/// The error of a letter whose channel or connection ended.
pub(crate) fn cut(error: lapin::Error) -> Error {
    error::amqp(OPERATION, error)
}
