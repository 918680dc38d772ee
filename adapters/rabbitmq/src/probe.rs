//! Finds out the type of a queue, which AMQP does not report: [`refuse_stream`], [`is_stream`].
//!
//! A stream keeps what is acknowledged, and a subscription without an offset starts behind what it holds: consumed as if it
//! were a queue, it loses messages. So it must be refused before anything is taken for delivered.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Connection, ErrorKind as Lapin};
use onceward::{Error, ErrorKind};

use crate::connection::Connect;
use crate::{error, native};

/// The header that the broker adds to each delivery of a stream. A copy of such a message in a queue has it as well.
const STREAM_OFFSET: &str = "x-stream-offset";
/// How long a question may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Arguments for a subscription that say nothing to a queue, and that a stream refuses: it has no priorities.
pub(crate) fn arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongInt(0));
    arguments
}

/// True if a subscription was refused because the queue is a stream.
pub(crate) fn refuses_stream(error: &lapin::Error) -> bool {
    kind_in(error) == Some("stream")
}

/// The type in "invalid arg 'x-priority' for queue 's' in vhost '/' of queue type rabbit_stream_queue".
fn kind_in(error: &lapin::Error) -> Option<&str> {
    let Lapin::ProtocolError(error) = error.kind() else { return None };
    let kind = error.get_message().as_str().split_once("of queue type ")?.1;
    let kind = kind.strip_prefix("rabbit_").unwrap_or(kind);
    Some(kind.strip_suffix("_queue").unwrap_or(kind))
}

/// That streams are not supported.
pub(crate) fn is_a_stream(queue: &str) -> Error {
    let what = "it is a stream, which keeps what is acknowledged and is read from an offset: messages would be skipped; \
                consume a classic or quorum queue, and bind it to the same exchange";
    Error::new(ErrorKind::Config, format!("consume queue {queue}"), what)
}

/// Refuses a queue that the broker says is a stream; nothing is consumed.
pub(crate) async fn refuse_stream(connection: &Connection, queue: &str) -> Result<(), Error> {
    match tokio::time::timeout(LIMIT, kind(connection, queue)).await {
        Ok(Some(kind)) if kind == "stream" => Err(is_a_stream(queue)),
        _ => Ok(()),
    }
}

/// The type of a queue, if the broker reports it: it does when it refuses a subscription that no type of queue accepts.
async fn kind(connection: &Connection, queue: &str) -> Option<String> {
    let channel = connection.create_channel().await.ok()?;
    // Should it be accepted, as little as possible is delivered before the channel is closed.
    channel.basic_qos(1, BasicQosOptions::default()).await.ok()?;
    let mut arguments = arguments();
    arguments.insert(STREAM_OFFSET.into(), native::text("next"));
    let name = ShortString::try_new(queue).ok()?;
    let (tag, options) = (ShortString::default(), BasicConsumeOptions::default());
    match channel.basic_consume(name, tag, options, arguments).await {
        Err(refused) => kind_in(&refused).map(str::to_owned),
        Ok(_) => {
            let _ = channel.close(200, "OK".into()).await;
            None
        }
    }
}

/// True if a delivery may be of a stream, which nothing showed before: it is the first, and has an offset. So has a copy of
/// such a message in a queue; the broker must say which it is.
pub(crate) fn is_suspect(delivery: &lapin::message::Delivery) -> bool {
    let headers = delivery.properties.headers().as_ref();
    delivery.delivery_tag == 1 && headers.is_some_and(|table| table.contains_key(STREAM_OFFSET))
}

/// True if the queue is a stream, which refuses to give a single message. A queue gives one, and gets it back at once.
///
/// # Errors
/// The broker does not answer.
pub(crate) async fn is_stream(connect: Arc<dyn Connect>, queue: &str) -> Result<bool, Error> {
    let operation = || format!("look at queue {queue}");
    let ask = async {
        // The refusal ends the connection.
        let connection = connect.connect().await?.connection;
        let channel = connection.create_channel().await.map_err(|error| error::amqp(operation(), error))?;
        let name =
            ShortString::try_new(queue).map_err(|_| error::config(operation(), "its name is too long"))?;
        let got = channel.basic_get(name, BasicGetOptions { no_ack: false }).await;
        let answer = match got {
            Ok(_) => Ok(false),
            Err(error) if is_not_implemented(&error) => return Ok(true),
            Err(error) => Err(error::amqp(operation(), error)),
        };
        let _ = connection.close(200, "OK".into()).await;
        answer
    };
    let late = |_| error::timeout(operation(), format!("the broker did not answer within {LIMIT:?}"));
    tokio::time::timeout(LIMIT, ask).await.map_err(late)?
}

fn is_not_implemented(error: &lapin::Error) -> bool {
    matches!(error.kind(), Lapin::ProtocolError(error)
        if *error.kind() == AMQPErrorKind::Hard(AMQPHardError::NOTIMPLEMENTED))
}

#[cfg(test)]
mod tests {
    use lapin::options::QueueDeclareOptions;
    use onceward_test_servers::rabbitmq::RabbitMq;

    use super::*;
    use crate::endpoint::Endpoint;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_broker_tells_streams_from_queues_and_takes_nothing_out() {
        let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
        let endpoint = Endpoint::new(broker.url());
        let connection = endpoint.connect().await.unwrap().connection;
        let channel = connection.create_channel().await.unwrap();
        for name in ["classic", "quorum", "stream"] {
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), native::text(name));
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            channel.queue_declare(name.into(), options, arguments).await.unwrap();
            let sent =
                channel.basic_publish("".into(), name.into(), Default::default(), b"1", Default::default());
            sent.await.unwrap();
            assert_eq!(kind(&connection, name).await.as_deref(), Some(name));
            let connect: Arc<dyn Connect> = Arc::new(endpoint.clone());
            assert_eq!(is_stream(connect, name).await.unwrap(), name == "stream");
            assert!(name == "stream" || broker.depth(name).0 == 1);
        }
    }
}
