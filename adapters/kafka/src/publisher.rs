//! Publishes, confirmed by all in-sync replicas: [`KafkaPublisher`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use onceward::{Error, ErrorKind, Outgoing, Publisher};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};

use crate::auth::password::{PasswordFile, Renewal};
use crate::client::blocking as task;
use crate::client::log::{self, Traced};
use crate::config::KafkaConfig;
use crate::error;
use crate::poll::rebalance::Users;
use crate::record as outgoing;

const OPERATION: &str = "publish to Kafka";
/// The largest message that the client takes. What was consumed can be published again with headers of ours: the broker says
/// what is too large for the topic.
const LARGEST: &str = "200000000";
/// How often a message is sent alone that was refused together with others.
const ALONE: u32 = 3;
/// How often a full queue of the client's is tried again.
const FULL: Duration = Duration::from_millis(5);

/// Publishes messages; each is confirmed by all in-sync replicas, and the client's own retries make no copies.
///
/// A destination is a topic, which must exist: none is created. [`Outgoing::order_key`] becomes the record key, so that messages of
/// one key stay in order on one partition; [`Outgoing::id`] becomes the header `message-id`, unless there is such a header, and
/// [`Outgoing::own_id`] the header `onceward-id`. The timestamp is kept if the message was made within the last day: an older
/// record would be deleted by the topic's retention too soon. Then the header `onceward-timestamp-ms` has it.
///
/// How large a message may be is the topic's affair (`max.message.bytes`), unless the property `message.max.bytes` is set.
///
/// How durable "confirmed" is depends on the topic: `min.insync.replicas` 2 or more survives the loss of a broker.
pub struct KafkaPublisher {
    client: ClientConfig,
    context: Users<Traced>,
    producer: Mutex<Arc<Client>>,
    limit: Duration,
    renewal: Arc<Mutex<Renewal>>,
}

type Client = FutureProducer<Users<Traced>>;

impl KafkaPublisher {
    /// How long a message may take to be confirmed, unless `message.timeout.ms` says otherwise.
    pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(8);

    /// A publisher to the cluster of `brokers`, with more properties of librdkafka. It connects with the first message.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if the properties cannot be used, or would send a login readably to
    /// another host: [`from_config`](Self::from_config) may allow that.
    pub fn new<B: Into<String>>(
        brokers: impl IntoIterator<Item = B>,
        properties: &BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let mut config = KafkaConfig::new(brokers, [""; 0], "");
        config.properties.clone_from(properties);
        Self::from_config(&config)
    }

    /// A publisher to the brokers of `config`, with its properties; its topics and group mean nothing here.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_config(config: &KafkaConfig) -> Result<Self, Error> {
        config.check_login()?;
        let password = config.password();
        if let Some(file) = &password {
            file.read()?;
        }
        Self::build(config.bare_client(), password)
    }

    /// A publisher with the user's own client configuration.
    ///
    /// # Errors
    /// As [`new`](Self::new); properties that would weaken the confirm are refused.
    pub fn from_client_config(client: ClientConfig) -> Result<Self, Error> {
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
                        "{name} = {set} would confirm what may be lost or doubled; set it to {value}"
                    );
                    return Err(error::config(OPERATION, what));
                }
            }
            client.set(names[0], value);
        }
        let own = Self::CONFIRM_TIMEOUT.as_millis().to_string();
        let limit = client.get("message.timeout.ms").unwrap_or(&own).parse().map(Duration::from_millis);
        let Ok(limit) = limit else {
            return Err(error::config(OPERATION, "message.timeout.ms is not a number of milliseconds"));
        };
        client.set("message.timeout.ms", limit.as_millis().to_string());
        for (name, value) in [("message.max.bytes", LARGEST), ("allow.auto.create.topics", "false")] {
            let alias = if name == "message.max.bytes" { "max.message.bytes" } else { name };
            if client.get(name).is_none() && client.get(alias).is_none() {
                client.set(name, value);
            }
        }
        log::level(&mut client);
        if client.get("linger.ms").or(client.get("queue.buffering.max.ms")).is_none() {
            client.set("linger.ms", "0");
        }
        let context = Users::new(Traced).with_password(password);
        let renewal = Arc::new(Mutex::new(context.renewal()));
        let producer = Mutex::new(made(&client, &context)?);
        Ok(Self { client, context, producer, limit, renewal })
    }

    fn producer(&self) -> Arc<Client> {
        Arc::clone(&self.producer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another client in the place of `broken`, unless that has happened.
    fn replace(&self, broken: &Arc<Client>) -> Result<(), Error> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&producer, broken) {
            *producer = made(&self.client, &self.context)?;
            // The new client has the password of the configuration only.
            *self.renewal.lock().unwrap_or_else(PoisonError::into_inner) = self.context.renewal();
        }
        Ok(())
    }

    /// Gives the client the password that its file holds now, if that is another one.
    async fn renew(&self) {
        let is_due = self.renewal.lock().unwrap_or_else(PoisonError::into_inner).is_due();
        if !is_due {
            return;
        }
        let (renewal, producer) = (Arc::clone(&self.renewal), self.producer());
        let look = move || {
            renewal.lock().unwrap_or_else(PoisonError::into_inner).look(producer.client());
        };
        if let Err(error) = task::blocking(look).await {
            tracing::warn!(%error, "the Kafka password was not looked at");
        }
    }

    /// Hands a message to the client, waiting while its queue is full.
    async fn enqueue(&self, outgoing: &Outgoing) -> Result<Sent, Error> {
        let producer = self.producer();
        let until = tokio::time::Instant::now() + self.limit;
        let headers = outgoing::headers(outgoing)?;
        let mut record = FutureRecord::<[u8], [u8]>::to(&outgoing.destination).headers(headers);
        record.key = outgoing.order_key.as_deref();
        record.payload = outgoing::payload(outgoing);
        record.timestamp = outgoing::timestamp_ms(outgoing);
        loop {
            match producer.send_result(record) {
                Ok(confirmed) => return Ok(Sent { producer, confirmed }),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again))
                    if tokio::time::Instant::now() < until =>
                {
                    record = again;
                    tokio::time::sleep(FULL).await;
                }
                Err((error, _)) => return Err(self.failed(&producer, outgoing, error)),
            }
        }
    }

    /// Waits until the broker has a message, or refuses it.
    async fn confirmed(&self, outgoing: &Outgoing, sent: Result<Sent, Error>) -> Result<(), Error> {
        let Sent { producer, confirmed } = sent?;
        match confirmed.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(self.failed(&producer, outgoing, error)),
            Err(_) => {
                let what = "the client was closed before the message was confirmed";
                Err(Error::new(ErrorKind::Unavailable, operation(outgoing), what))
            }
        }
    }

    /// Refused credentials are no reason to give a message up: they are mended, and it is sent. Nor is a client that cannot go on,
    /// such as one whose sequence the broker has lost: another one takes its place.
    fn failed(&self, producer: &Arc<Client>, outgoing: &Outgoing, error: KafkaError) -> Error {
        let Some((code, reason)) = producer.client().fatal_error() else {
            return self.context.trouble.explain(operation(outgoing), error, ErrorKind::Unavailable);
        };
        tracing::warn!(%code, reason, "the Kafka client cannot go on publishing; it is replaced");
        let what = match self.replace(producer) {
            Ok(()) => "the client could not go on, and was replaced; publish the message again",
            Err(_) => "the client cannot go on, and no other one can be made; restart the program",
        };
        Error::new(ErrorKind::Unavailable, operation(outgoing), what)
            .with_source(KafkaError::MessageProduction(code))
    }
}

/// A message that the client has taken, and the client.
struct Sent {
    producer: Arc<Client>,
    confirmed: DeliveryFuture,
}

fn made(client: &ClientConfig, context: &Users<Traced>) -> Result<Arc<Client>, Error> {
    client.create_with_context(context.clone()).map(Arc::new).map_err(|error| error::kafka(OPERATION, error))
}

fn operation(outgoing: &Outgoing) -> String {
    format!("publish to topic {}", outgoing.destination)
}

#[async_trait]
impl Publisher for KafkaPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        self.renew().await;
        let mut sent = Vec::with_capacity(batch.len());
        for outgoing in batch {
            sent.push(self.enqueue(outgoing).await);
        }
        let confirmed = sent.into_iter().zip(batch).map(|(sent, outgoing)| self.confirmed(outgoing, sent));
        let mut results = join_all(confirmed).await;
        // The broker refuses a batch of the client's as a whole: those that fit must not fail with one that does not.
        for (result, outgoing) in results.iter_mut().zip(batch) {
            let is_large = |result: &Result<(), Error>| {
                result.as_ref().is_err_and(|error| error.kind() == ErrorKind::TooLarge)
            };
            for _ in 0..ALONE {
                if !is_large(result) {
                    break;
                }
                *result = self.confirmed(outgoing, self.enqueue(outgoing).await).await;
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
    async fn a_client_that_cannot_go_on_is_replaced_and_what_it_had_is_to_be_sent_again() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("letters", 1, 1).unwrap();
        let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[refused]);
        let publisher = KafkaPublisher::new([cluster.bootstrap_servers()], &BTreeMap::new()).unwrap();
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
