//! Delivers the messages of a subscription: [`PubsubConsumer`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use google_cloud_pubsub::client::Subscriber;
use onceward::adapter::{Acker, Capabilities, Consumer, Delivery, Tag};
use onceward::telemetry::SourceHealth;
use onceward::{Error, ErrorKind};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acker::PubsubAcker;
use crate::config::{PubsubConfig, PubsubSubscriptionConfig};
use crate::connection::names::Collection;
use crate::connection::reachability::Reachability;
use crate::error;
use crate::inspect::PubsubSubscriptionStatus;
use crate::message;
use crate::receive::puller::{ClientSource, Puller, ReceivedMessage};
use crate::receive::source_watch::SourceWatch;
use crate::settle::leases::Leases;

/// The most deliveries of one batch.
const BATCH: usize = 256;
/// The most batches that wait to be delivered.
const BATCHES: usize = 4;

/// Consumes a subscription.
///
/// Messages arrive over one stream. From receipt until a message is settled the client library extends its ack deadline,
/// also while it waits for its retry: a failed message is retried in place, which counts as no delivery for the
/// subscription's dead-letter policy.
///
/// With ordering keys, the messages of a key are delivered in order, and a failed one is retried before the next; this needs
/// a pipeline with the broker's ordering key.
///
/// With exactly-once delivery, an ack counts when Pub/Sub has confirmed it. A refused one settles nothing: the message is
/// redelivered.
///
/// The consumer recovers by itself from lost connections and from errors that pass. While nothing was received yet,
/// [`receive`](Consumer::receive) reports errors that an operator must fix, such as a subscription that does not exist.
pub struct PubsubConsumer {
    status: Arc<PubsubSubscriptionStatus>,
    config: Arc<PubsubSubscriptionConfig>,
    acker: PubsubAcker,
    health: Arc<SourceHealth>,
    batches: mpsc::Receiver<Result<Vec<ReceivedMessage>, Error>>,
    /// Stops the stream, the checks of the network, and the delay of rejected messages.
    stopping: CancellationToken,
    streams: TaskTracker,
}

impl PubsubConsumer {
    /// Connects, reads the subscription's attributes where the endpoint offers that, and starts to receive.
    ///
    /// Without the permission `pubsub.subscriptions.get`, or from an emulator that does not offer Pub/Sub's REST interface,
    /// the attributes stay unknown, and the configuration is taken at its word.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if values are invalid, the subscription does not exist, or it does not have the ordering that
    /// the configuration names; [`ErrorKind::Denied`] without credentials; [`ErrorKind::Unavailable`] or
    /// [`ErrorKind::Timeout`] if Pub/Sub does not respond.
    pub async fn open(config: PubsubConfig) -> Result<Self, Error> {
        config.check()?;
        let name = Collection::Subscriptions
            .full_name(&config.subscription.name, config.endpoint.project.as_deref())?;
        let server = Reachability::of(&config.endpoint)?;
        server.check().await?;
        let status = PubsubSubscriptionStatus::read_if_offered(&config.endpoint, &name).await?;
        status.check_order(config.subscription.ordered)?;
        let source = ClientSource::Endpoint(config.endpoint);
        Ok(Self::start(source, Some(server), name, status, config.subscription))
    }

    /// Starts to receive with the caller's client: its endpoint, credentials and connections. The subscription's name must be
    /// full, and its attributes stay unknown.
    ///
    /// The client's own reconnects are all there is: a connection that died silently is noticed by the operating system
    /// only, after about 15 minutes.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if values are invalid.
    pub async fn from_client(
        client: Subscriber,
        subscription: PubsubSubscriptionConfig,
    ) -> Result<Self, Error> {
        subscription.check()?;
        let name = Collection::Subscriptions.full_name(&subscription.name, None)?;
        let status = PubsubSubscriptionStatus::default();
        Ok(Self::start(ClientSource::Client(client), None, name, status, subscription))
    }

    fn start(
        clients: ClientSource,
        server: Option<Reachability>,
        name: String,
        status: PubsubSubscriptionStatus,
        config: PubsubSubscriptionConfig,
    ) -> Self {
        let subscription: Arc<str> = name.into();
        let (stopping, streams) = (CancellationToken::new(), TaskTracker::new());
        let (sender, batches) = mpsc::channel(BATCHES);
        let leases = Leases::new(config.max_outstanding_messages as usize, config.max_outstanding_bytes);
        let leases = Arc::new(leases);
        let health = Arc::new(SourceHealth::default());
        health.set_up();
        let watch = Arc::new(SourceWatch::new(Arc::clone(&subscription), Arc::clone(&health)));
        if let Some(server) = server {
            let watch = Arc::clone(&watch);
            let check = async move { watch.check_network(server).await };
            tokio::spawn(stopping.clone().run_until_cancelled_owned(check));
        }
        let acker = PubsubAcker {
            subscription: Arc::clone(&subscription),
            leases: Arc::clone(&leases),
            call_timeout: config.call_timeout,
            reject_delay: config.ack_deadline,
            stopping: stopping.clone(),
        };
        let config = Arc::new(config);
        let puller = Puller {
            clients,
            subscription,
            config: Arc::clone(&config),
            leases,
            watch,
            batches: sender,
            stopping: stopping.clone(),
            streams: streams.clone(),
        };
        streams.spawn(puller.run());
        Self { status: Arc::new(status), config, acker, health, batches, stopping, streams }
    }

    /// The attributes of the subscription when the consumer was opened.
    pub fn subscription_status(&self) -> &PubsubSubscriptionStatus {
        &self.status
    }

    fn deliver(&self, batch: Vec<ReceivedMessage>, deliveries: &mut Vec<Delivery>) {
        for ReceivedMessage { number, message, attempt } in batch {
            let origin = Arc::clone(&self.acker.subscription);
            let message = message::to_message(message, attempt, origin, &self.config.own_headers);
            deliveries.push(Delivery { message, tag: Tag { epoch: 0, number } });
        }
    }
}

#[async_trait]
impl Consumer for PubsubConsumer {
    fn capabilities(&self) -> Capabilities {
        self.status.capabilities(&self.config)
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(self.acker.clone())
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        let Some(batch) = self.batches.recv().await else {
            let operation = format!("receive from {}", self.acker.subscription);
            return Err(Error::new(ErrorKind::Internal, operation, "the consumer was closed"));
        };
        // Nothing is awaited from here on: a dropped call loses no delivery.
        let mut deliveries = Vec::new();
        self.deliver(batch?, &mut deliveries);
        while deliveries.len() < BATCH {
            let Ok(Ok(batch)) = self.batches.try_recv() else { break };
            self.deliver(batch, &mut deliveries);
        }
        Ok(Some(deliveries))
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        Some(Arc::clone(&self.health))
    }

    /// Returns the messages that were not settled, and waits for at most the call timeout until Pub/Sub has the acks.
    async fn close(&mut self) -> Result<(), Error> {
        self.stopping.cancel();
        self.acker.leases.release_all();
        self.streams.close();
        let limit = self.config.call_timeout;
        tokio::time::timeout(limit, self.streams.wait())
            .await
            .map_err(|_| error::timeout(format!("send the last acks of {}", self.acker.subscription)))
    }
}

/// Returns the messages that were not settled.
impl Drop for PubsubConsumer {
    fn drop(&mut self) {
        self.stopping.cancel();
        self.acker.leases.release_all();
    }
}

impl fmt::Debug for PubsubConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PubsubConsumer")
            .field("subscription", &self.acker.subscription)
            .finish_non_exhaustive()
    }
}
