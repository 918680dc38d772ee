//! Streams are refused before anything counts as delivered.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use onceward::ErrorKind;
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqQueueConfig};

use crate::support::{Admin, Kind, shared, take, text, unique};

async fn declare_stream(admin: &Admin) -> String {
    let stream = unique("stream");
    let kind = [("x-queue-type", AMQPValue::LongString("stream".into()))];
    admin.declare_with(&stream, Kind::Classic, &kind).await;
    stream
}

fn is_refusal(error: &onceward::Error) {
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("streams are not supported") && !error.is_retryable(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_refused_at_start_and_by_a_look_from_outside() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let stream = declare_stream(&admin).await;
    is_refusal(&RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), &stream)).await.err().unwrap());
    is_refusal(&RabbitmqEndpoint::new(broker.url()).source_status(&stream).await.unwrap_err());
    // Letters may go there.
    assert!(RabbitmqEndpoint::new(broker.url()).queue_status(&stream).await.is_ok());
    for kind in [Kind::Classic, Kind::Quorum] {
        let queue = unique("queue");
        admin.declare(&queue, kind).await;
        assert!(RabbitmqEndpoint::new(broker.url()).source_status(&queue).await.is_ok());
        assert!(RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), &queue)).await.is_ok());
    }
}

/// With no more than the right to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_refused_on_whichever_connection_and_with_few_rights() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (stream, user) = (declare_stream(&admin).await, unique("reader"));
    broker.ctl(&["add_user", &user, "secret"]);
    broker.ctl(&["set_permissions", "-p", "/", &user, "^$", "^$", ".*"]);
    let url = broker.url().replace("guest:guest", &format!("{user}:secret"));
    is_refusal(&RabbitmqConsumer::open(RabbitmqConfig::new(&url, &stream)).await.err().unwrap());
    is_refusal(&RabbitmqEndpoint::new(&url).source_status(&stream).await.unwrap_err());
    let connection = lapin::Connection::connect(&url, Default::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(10, Default::default()).await.unwrap();
    is_refusal(
        &RabbitmqConsumer::from_channel(channel, RabbitmqQueueConfig::new(&stream)).await.err().unwrap(),
    );
}

/// A message that was copied out of a stream has the stream's header, and must not end a source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_streams_message_in_a_queue_is_a_message() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Quorum).await;
    let mut headers = FieldTable::default();
    headers.insert("x-stream-offset".into(), AMQPValue::LongLongInt(7));
    let properties = BasicProperties::default().with_headers(headers);
    let sent = admin.channel.basic_publish(
        "".into(),
        queue.as_str().into(),
        Default::default(),
        b"copy",
        properties,
    );
    sent.await.unwrap().await.unwrap();
    admin.publish(&queue, ["next".to_owned()]).await;
    let mut consumer = RabbitmqConsumer::open(RabbitmqConfig::new(broker.url(), &queue)).await.unwrap();
    let texts: Vec<_> = take(&mut consumer, 2).await.iter().map(text).collect();
    assert_eq!(texts, ["copy", "next"]);
}
