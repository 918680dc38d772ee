//! Publishes messages on one channel and waits for their confirms: [`publish`].

use std::fmt;
use std::pin::Pin;

use futures_util::future::{MaybeDone, maybe_done};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use onceward::dead_letter::HEADER_ID;
use onceward::{Error, ErrorKind};

use crate::error;
use crate::publish::publishing::Publishing;

pub(crate) const OPERATION: &str = "publish to RabbitMQ";

/// The outcome of one published message.
pub(crate) enum ConfirmOutcome {
    /// The broker confirmed, refused or returned it.
    Answered(Result<(), Error>),
    /// The channel or the connection was closed before a confirm.
    Interrupted(lapin::Error),
}

/// Opens a channel with publisher confirms.
pub(crate) async fn open_channel(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Publishes all messages, then waits for all confirms; one outcome for each, in order.
///
/// # Cancel safety
/// A dropped call may or may not have published any of them, and leaves confirms behind on the channel.
pub(crate) async fn publish(channel: &Channel, publishings: &[&Publishing]) -> Vec<ConfirmOutcome> {
    let mut sending: Vec<Pin<Box<MaybeDone<_>>>> = Vec::with_capacity(publishings.len());
    for publishing in publishings {
        let mut confirmed = Box::pin(maybe_done(publish_one(channel, publishing)));
        // The first poll queues the message: they are sent in the order of the batch.
        let _ = futures_util::poll!(&mut confirmed);
        sending.push(confirmed);
    }
    let mut outcomes = Vec::with_capacity(sending.len());
    let mut returned = Vec::new();
    for mut confirmed in sending {
        confirmed.as_mut().await;
        outcomes.push(to_outcome(confirmed.as_mut().take_output(), &mut returned));
    }
    // A confirm may carry the returned message of another one: they are matched by content.
    for (publishing, outcome) in publishings.iter().zip(&mut outcomes) {
        if let Some(message) = returned.iter().find(|message| is_same_message(message, publishing)) {
            *outcome = ConfirmOutcome::Answered(Err(unroutable_error(publishing, message)));
        }
    }
    outcomes
}

async fn publish_one(channel: &Channel, publishing: &Publishing) -> lapin::Result<Confirmation> {
    let options =
        BasicPublishOptions { mandatory: !is_direct_reply(publishing), ..BasicPublishOptions::default() };
    let (exchange, routing_key) = (publishing.exchange.clone(), publishing.routing_key.clone());
    let sent = channel.basic_publish(
        exchange,
        routing_key,
        options,
        &publishing.payload,
        publishing.properties.clone(),
    );
    sent.await?.await
}

/// True for the address of a requester that waits at `amq.rabbitmq.reply-to`, which is no queue: the broker delivers a mandatory message
/// to it and returns it nevertheless.
fn is_direct_reply(publishing: &Publishing) -> bool {
    publishing.exchange.as_str().is_empty()
        && publishing.routing_key.as_str().starts_with("amq.rabbitmq.reply-to.")
}

fn to_outcome(
    confirmation: Option<lapin::Result<Confirmation>>,
    returned: &mut Vec<BasicReturnMessage>,
) -> ConfirmOutcome {
    ConfirmOutcome::Answered(match confirmation {
        Some(Ok(Confirmation::Ack(message))) => {
            returned.extend(message);
            Ok(())
        }
        Some(Ok(Confirmation::Nack(message))) => {
            returned.extend(message);
            let what = "the broker refused the message; the queue may be full (x-overflow=reject-publish) or have no leader";
            Err(Error::new(ErrorKind::Unavailable, OPERATION, what).with_source(NotTaken::Refused))
        }
        Some(Err(error)) => return ConfirmOutcome::Interrupted(error),
        Some(Ok(Confirmation::NotRequested)) | None => Err(Error::new(
            ErrorKind::Internal,
            OPERATION,
            "the channel has no publisher confirms; this is a bug",
        )),
    })
}

/// Two messages of one batch with the same address, message id and own id are copies of one message.
fn is_same_message(message: &BasicReturnMessage, publishing: &Publishing) -> bool {
    message.exchange == publishing.exchange
        && message.routing_key == publishing.routing_key
        && message.properties.message_id() == publishing.properties.message_id()
        && read_own_id(&message.properties) == read_own_id(&publishing.properties)
}

/// Reads our own id from the headers.
pub(crate) fn read_own_id(properties: &BasicProperties) -> Option<&[u8]> {
    let id = properties.headers().as_ref()?.inner().get(HEADER_ID)?;
    id.as_long_string().map(|id| id.as_bytes()).or(match id {
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice()),
        _ => None,
    })
}

fn unroutable_error(publishing: &Publishing, message: &BasicReturnMessage) -> Error {
    let place = match publishing.exchange.as_str() {
        "" => format!("there is no queue {}", publishing.routing_key),
        exchange => format!("exchange {exchange} has no queue for routing key {}", publishing.routing_key),
    };
    let what = format!(
        "the broker returned the message ({}): {place}; declare the queue or its binding",
        message.reply_code
    );
    Error::new(ErrorKind::Unavailable, OPERATION, what).with_source(NotTaken::Returned)
}

/// How the broker has not taken a message, for certain: the source of its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Returned: no queue is bound to its address.
    Returned,
    /// Refused (`basic.nack`): its queue is full, or failed.
    Refused,
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the broker has not taken the message")
    }
}

impl std::error::Error for NotTaken {}

/// How the broker has not taken the message of this error; `None`: that is unknown, or it was not sent.
pub(crate) fn not_taken(error: &Error) -> Option<NotTaken> {
    std::error::Error::source(error)?.downcast_ref().copied()
}

/// The error of a message whose channel or connection was closed.
pub(crate) fn publish_error(error: lapin::Error) -> Error {
    error::classify(OPERATION, error)
}
