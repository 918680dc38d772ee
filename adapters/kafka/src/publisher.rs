//! Publishes messages, confirmed by all in-sync replicas: [`KafkaPublisher`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use onceward::{Error, ErrorKind, Outgoing, Publisher};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};

use crate::auth::password::{PasswordFile, PasswordRefresh};
use crate::client::blocking::run_blocking;
use crate::client::context::SharedContext;
use crate::client::log::{self, TracingContext};
use crate::connection::KafkaConnection;
use crate::error;
use crate::record;

const OPERATION: &str = "publish to Kafka";
/// The client's own message limit. The topic's limit decides: a consumed message must be publishable with additional headers.
const MAX_MESSAGE_BYTES: &str = "200000000";
/// How often a message is sent alone after it was rejected together with others.
const MAX_SENDS_ALONE: u32 = 3;
/// The delay before a retry when the client's queue is full.
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(5);

/// Publishes messages; each is confirmed by all in-sync replicas, and the client's own retries create no copies.
///
/// A destination is a topic, which must exist: none is created. [`Outgoing::order_key`] becomes the record key, so that messages
/// with one key stay in order on one partition; [`Outgoing::id`] becomes the header `message-id`, unless there is such a header,
/// and [`Outgoing::own_id`] the header `onceward-id`. The timestamp is kept if it lies within the last day: the topic's retention
/// would delete an older record too soon. An older timestamp goes to the header `onceward-timestamp-ms`.
///
/// The topic limits the size of a message (`max.message.bytes`), unless the property `message.max.bytes` is set.
///
/// The topic also decides how durable a confirmed message is: `min.insync.replicas` of 2 or more survives the loss of a broker.
pub struct KafkaPublisher {
    client: ClientConfig,
    context: SharedContext<TracingContext>,
    producer: Mutex<Arc<ProducerClient>>,
    confirm_timeout: Duration,
    password_refresh: Arc<Mutex<PasswordRefresh>>,
}

type ProducerClient = FutureProducer<SharedContext<TracingContext>>;

impl fmt::Debug for KafkaPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brokers = self.client.get("bootstrap.servers");
        f.debug_struct("KafkaPublisher").field("brokers", &brokers).finish_non_exhaustive()
    }
}

impl KafkaPublisher {
    /// How long the confirmation of a message may take, unless `message.timeout.ms` is set.
    pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(8);

    /// Creates a publisher. It connects with the first message.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if a value is invalid, weakens the confirmation, or would send a login
    /// to another host in plaintext.
    pub fn open(connection: KafkaConnection) -> Result<Self, Error> {
        connection.check()?;
        Self::build(connection.client(), connection.password())
    }

    /// Creates a publisher with the user's own client configuration. It connects with the first message.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if a property is invalid or weakens the confirmation.
    pub fn from_client(client: ClientConfig) -> Result<Self, Error> {
        Self::build(client, None)
    }

    pub(crate) fn build(
        mut client: ClientConfig,
        password: Option<Arc<PasswordFile>>,
    ) -> Result<Self, Error> {
        for (names, value) in
            [(["acks", "request.required.acks"], "all"), (["enable.idempotence", ""], "true")]
        {
            for name in names {
                if let Some(set) = client.get(name)
                    && set != value
                    && !(value == "all" && set == "-1")
                {
                    let what = format!(
                        "{name} = {set} would confirm messages that may be lost or duplicated; set it to {value}"
                    );
                    return Err(error::config_error(OPERATION, what));
                }
            }
            client.set(names[0], value);
        }
        let own = Self::CONFIRM_TIMEOUT.as_millis().to_string();
        let timeout = client.get("message.timeout.ms").unwrap_or(&own).parse().map(Duration::from_millis);
        let Ok(confirm_timeout) = timeout else {
            return Err(error::config_error(
                OPERATION,
                "message.timeout.ms must be a number of milliseconds",
            ));
        };
        client.set("message.timeout.ms", confirm_timeout.as_millis().to_string());
        for (name, value) in [("message.max.bytes", MAX_MESSAGE_BYTES), ("allow.auto.create.topics", "false")]
        {
            let alias = if name == "message.max.bytes" { "max.message.bytes" } else { name };
            if client.get(name).is_none() && client.get(alias).is_none() {
                client.set(name, value);
            }
        }
        log::enable_warnings(&mut client);
        if client.get("linger.ms").or(client.get("queue.buffering.max.ms")).is_none() {
            client.set("linger.ms", "0");
        }
        let context = SharedContext::new(TracingContext).with_password(password);
        let password_refresh = Arc::new(Mutex::new(context.password_refresh()));
        let producer = Mutex::new(create_producer(&client, &context)?);
        Ok(Self { client, context, producer, confirm_timeout, password_refresh })
    }

    fn producer(&self) -> Arc<ProducerClient> {
        Arc::clone(&self.producer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the client `broken`, unless it was replaced already.
    fn replace(&self, broken: &Arc<ProducerClient>) -> Result<(), Error> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&producer, broken) {
            *producer = create_producer(&self.client, &self.context)?;
            // The new client only has the password of the configuration.
            *self.password_refresh.lock().unwrap_or_else(PoisonError::into_inner) =
                self.context.password_refresh();
        }
        Ok(())
    }

    /// Gives a changed password to the client, if the file is due to be read.
    async fn refresh_password(&self) {
        let is_due = self.password_refresh.lock().unwrap_or_else(PoisonError::into_inner).is_due();
        if !is_due {
            return;
        }
        let (refresh, producer) = (Arc::clone(&self.password_refresh), self.producer());
        let run = move || {
            refresh.lock().unwrap_or_else(PoisonError::into_inner).run_if_due(producer.client());
        };
        if let Err(error) = run_blocking(run).await {
            tracing::warn!(%error, "refreshing the Kafka password failed");
        }
    }

    /// Passes a message to the client, and waits while its queue is full.
    async fn enqueue(&self, outgoing: &Outgoing) -> Result<SentMessage, Error> {
        let producer = self.producer();
        let until = tokio::time::Instant::now() + self.confirm_timeout;
        let headers = record::to_headers(outgoing)?;
        let mut record = FutureRecord::<[u8], [u8]>::to(&outgoing.destination);
        record.headers = headers;
        record.key = outgoing.order_key.as_deref();
        record.payload = record::to_payload(outgoing);
        record.timestamp = record::to_timestamp_ms(outgoing);
        loop {
            match producer.send_result(record) {
                Ok(confirmed) => return Ok(SentMessage { producer, confirmed }),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again))
                    if tokio::time::Instant::now() < until =>
                {
                    record = again;
                    tokio::time::sleep(QUEUE_FULL_DELAY).await;
                }
                Err((error, _)) => return Err(self.to_error(&producer, outgoing, error)),
            }
        }
    }

    /// Waits until the broker confirms or rejects a message.
    async fn wait_confirmed(
        &self,
        outgoing: &Outgoing,
        sent: Result<SentMessage, Error>,
    ) -> Result<(), Error> {
        let SentMessage { producer, confirmed } = sent?;
        match confirmed.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(self.to_error(&producer, outgoing, error)),
            Err(_) => {
                let what = "the client was closed before the message was confirmed";
                Err(Error::new(ErrorKind::Unavailable, operation(outgoing), what))
            }
        }
    }

    /// Classifies a failure. Rejected credentials are retryable: the message is sent once they are corrected. A client with a fatal
    /// error, such as one whose sequence the broker has lost, is replaced.
    fn to_error(&self, producer: &Arc<ProducerClient>, outgoing: &Outgoing, error: KafkaError) -> Error {
        let Some((code, reason)) = producer.client().fatal_error() else {
            return self.context.diagnosis.explain(operation(outgoing), error, ErrorKind::Unavailable);
        };
        tracing::warn!(%code, reason, "fatal error of the Kafka producer; replacing it");
        let what = match self.replace(producer) {
            Ok(()) => "the client had a fatal error and was replaced; publish the message again",
            Err(_) => "the client had a fatal error, and creating another one failed; restart the program",
        };
        Error::new(ErrorKind::Unavailable, operation(outgoing), what)
            .with_source(KafkaError::MessageProduction(code))
    }
}

/// A message in the client's queue, and the client.
struct SentMessage {
    producer: Arc<ProducerClient>,
    confirmed: DeliveryFuture,
}

fn create_producer(
    client: &ClientConfig,
    context: &SharedContext<TracingContext>,
) -> Result<Arc<ProducerClient>, Error> {
    client
        .create_with_context(context.clone())
        .map(Arc::new)
        .map_err(|error| error::classify(OPERATION, error))
}

fn operation(outgoing: &Outgoing) -> String {
    format!("publish to topic {}", outgoing.destination)
}

#[async_trait]
impl Publisher for KafkaPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        self.refresh_password().await;
        let mut sent = Vec::with_capacity(batch.len());
        for outgoing in batch {
            sent.push(self.enqueue(outgoing).await);
        }
        let confirmed =
            sent.into_iter().zip(batch).map(|(sent, outgoing)| self.wait_confirmed(outgoing, sent));
        let mut results = join_all(confirmed).await;
        // The broker rejects a batch of the client as a whole: messages that fit must not fail with one that does not.
        for (result, outgoing) in results.iter_mut().zip(batch) {
            let is_too_large = |result: &Result<(), Error>| {
                result.as_ref().is_err_and(|error| error.kind() == ErrorKind::TooLarge)
            };
            for _ in 0..MAX_SENDS_ALONE {
                if !is_too_large(result) {
                    break;
                }
                *result = self.wait_confirmed(outgoing, self.enqueue(outgoing).await).await;
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_client_with_a_fatal_error_is_replaced_and_its_messages_are_retryable() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("letters", 1, 1).unwrap();
        let rejected = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[rejected]);
        let publisher = KafkaPublisher::open(KafkaConnection::new([cluster.bootstrap_servers()])).unwrap();
        let letter =
            || Outgoing { destination: "letters".into(), payload: "letter".into(), ..Outgoing::default() };
        let failed = publisher.publish(&[letter(), letter()]).await;
        for failed in failed {
            assert_eq!(failed.map_err(|error| error.kind()), Err(ErrorKind::Unavailable));
        }
        let sent = publisher.publish(&[letter()]).await.remove(0);
        assert!(sent.is_ok(), "{sent:?}");
    }
}
