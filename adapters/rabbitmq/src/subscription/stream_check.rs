//! Detects streams, since AMQP does not report the type of a queue: [`refuse_stream`], [`is_stream`].
//!
//! A stream keeps acknowledged messages, and a subscription without an offset starts behind its content: consumed like
//! a queue, it loses messages. It is therefore refused before anything counts as delivered.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Connection, ErrorKind as Lapin};
use onceward::{Error, ErrorKind};

use crate::connection::connector::AmqpConnector;
use crate::error;
use crate::format::native;

/// The header that the broker adds to each delivery from a stream. A copy of such a message in a queue has it as well.
const STREAM_OFFSET: &str = "x-stream-offset";
/// The timeout of a query.
const LIMIT: Duration = Duration::from_secs(5);

/// Arguments of a subscription that have no effect on a queue and that a stream refuses: it has no priorities.
pub(crate) fn consume_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongInt(0));
    arguments
}

/// True if a subscription was refused because the queue is a stream.
pub(crate) fn is_stream_refusal(error: &lapin::Error) -> bool {
    parse_queue_type(error) == Some("stream")
}

/// Parses the type in "invalid arg 'x-priority' for queue 's' in vhost '/' of queue type rabbit_stream_queue".
fn parse_queue_type(error: &lapin::Error) -> Option<&str> {
    let Lapin::ProtocolError(error) = error.kind() else { return None };
    let kind = error.get_message().as_str().split_once("of queue type ")?.1;
    let kind = kind.strip_prefix("rabbit_").unwrap_or(kind);
    Some(kind.strip_suffix("_queue").unwrap_or(kind))
}

/// The error of a stream as source.
pub(crate) fn stream_error(queue: &str) -> Error {
    let what = "streams are not supported, because messages would be skipped; consume a classic or quorum queue bound to \
                the same exchange";
    Error::new(ErrorKind::Config, format!("consume queue {queue}"), what)
}

/// Fails if the broker reports that the queue is a stream; nothing is consumed.
pub(crate) async fn refuse_stream(connection: &Connection, queue: &str) -> Result<(), Error> {
    match tokio::time::timeout(LIMIT, query_queue_type(connection, queue)).await {
        Ok(Some(kind)) if kind == "stream" => Err(stream_error(queue)),
        _ => Ok(()),
    }
}

/// Queries the type of a queue: the broker reports it when it refuses a subscription that no type of queue accepts.
pub(crate) async fn query_queue_type(connection: &Connection, queue: &str) -> Option<String> {
    let channel = connection.create_channel().await.ok()?;
    // If it is accepted after all, at most one message is delivered before the channel is closed.
    channel.basic_qos(1, BasicQosOptions::default()).await.ok()?;
    let mut arguments = consume_arguments();
    arguments.insert(STREAM_OFFSET.into(), native::long_string("next"));
    let name = ShortString::try_new(queue).ok()?;
    let (tag, options) = (ShortString::default(), BasicConsumeOptions::default());
    match channel.basic_consume(name, tag, options, arguments).await {
        Err(refused) => parse_queue_type(&refused).map(str::to_owned),
        Ok(_) => {
            let _ = channel.close(200, "OK".into()).await;
            None
        }
    }
}

/// True if a delivery may be from a stream: it is the first of the channel and has an offset. A copy of a stream's
/// message in a queue has one as well; a query decides.
pub(crate) fn may_be_from_stream(delivery: &lapin::message::Delivery) -> bool {
    let headers = delivery.properties.headers().as_ref();
    delivery.delivery_tag == 1 && headers.is_some_and(|table| table.contains_key(STREAM_OFFSET))
}

/// True if the queue is a stream, which refuses `basic.get`. A queue returns one message, which is requeued
/// immediately.
///
/// # Errors
/// The broker does not answer.
pub(crate) async fn is_stream(connect: Arc<dyn AmqpConnector>, queue: &str) -> Result<bool, Error> {
    let operation = || format!("inspect queue {queue}");
    let ask = async {
        // The refusal closes the connection.
        let connection = connect.connect().await?.connection;
        let channel =
            connection.create_channel().await.map_err(|error| error::classify(operation(), error))?;
        let name =
            ShortString::try_new(queue).map_err(|_| error::config(operation(), "its name is too long"))?;
        let got = channel.basic_get(name, BasicGetOptions { no_ack: false }).await;
        let answer = match got {
            Ok(_) => Ok(false),
            Err(error) if is_not_implemented(&error) => return Ok(true),
            Err(error) => Err(error::classify(operation(), error)),
        };
        let _ = connection.close(200, "OK".into()).await;
        answer
    };
    let late = |_| error::timeout(operation(), format!("no answer from the broker within {LIMIT:?}"));
    tokio::time::timeout(LIMIT, ask).await.map_err(late)?
}

pub(crate) fn is_not_implemented(error: &lapin::Error) -> bool {
    matches!(error.kind(), Lapin::ProtocolError(error)
        if *error.kind() == AMQPErrorKind::Hard(AMQPHardError::NOTIMPLEMENTED))
}

#[cfg(test)]
mod tests {
    use lapin::options::QueueDeclareOptions;
    use onceward_test_servers::rabbitmq::RabbitMq;

    use super::*;
    use crate::connection::endpoint::RabbitmqEndpoint;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn streams_and_queues_are_distinguished_and_nothing_is_consumed() {
        let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
        let endpoint = RabbitmqEndpoint::new(broker.url());
        let connection = endpoint.connect().await.unwrap().connection;
        let channel = connection.create_channel().await.unwrap();
        for name in ["classic", "quorum", "stream"] {
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), native::long_string(name));
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            channel.queue_declare(name.into(), options, arguments).await.unwrap();
            let sent =
                channel.basic_publish("".into(), name.into(), Default::default(), b"1", Default::default());
            sent.await.unwrap();
            assert_eq!(query_queue_type(&connection, name).await.as_deref(), Some(name));
            let connect: Arc<dyn AmqpConnector> = Arc::new(endpoint.clone());
            assert_eq!(is_stream(connect, name).await.unwrap(), name == "stream");
            assert!(name == "stream" || broker.depth(name).0 == 1);
        }
    }
}
