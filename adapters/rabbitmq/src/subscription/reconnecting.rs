//! A subscription that is replaced when it ends: [`ReconnectingSubscription`].

use std::sync::Arc;
use std::time::Instant;

use onceward::telemetry::SourceHealth;
use onceward::{Error, ErrorKind};
use tokio::task::JoinHandle;

use crate::acker::RabbitmqAcker;
use crate::config::RabbitmqQueueConfig;
use crate::connection::connector::{AmqpConnector, OpenConnection};
use crate::error;
use crate::settle::ack_timeout::AckTimeoutGuard;
use crate::subscription::lag_monitor::LagMonitor;
use crate::subscription::{self, SHORT_LIFE, Subscription, disconnect};

/// The subscription of a consumer, with its replacement after a loss.
pub(crate) struct ReconnectingSubscription {
    /// `None` on a channel of the caller, which cannot be reopened.
    connector: Option<Arc<dyn AmqpConnector>>,
    queue: RabbitmqQueueConfig,
    acker: RabbitmqAcker,
    health: Arc<SourceHealth>,
    pub(crate) current: Option<Subscription>,
    /// When the current subscription started, and the number of consecutive short-lived subscriptions before it.
    started_at: Instant,
    short_lives: u32,
    /// Measures the queue length while the subscription lasts.
    lag_monitor: Option<LagMonitor>,
    /// Continues while `receive` is not called.
    resubscribing: Option<JoinHandle<Subscription>>,
}

impl ReconnectingSubscription {
    pub(crate) fn new(
        connector: Option<Arc<dyn AmqpConnector>>,
        queue: RabbitmqQueueConfig,
        acker: RabbitmqAcker,
        health: Arc<SourceHealth>,
    ) -> Self {
        Self {
            connector,
            queue,
            acker,
            health,
            current: None,
            started_at: Instant::now(),
            short_lives: 0,
            lag_monitor: None,
            resubscribing: None,
        }
    }

    pub(crate) fn connector(&self) -> Option<&Arc<dyn AmqpConnector>> {
        self.connector.as_ref()
    }

    /// Starts to use a subscription.
    pub(crate) fn attach(&mut self, subscription: Subscription, ack_timeout: &AckTimeoutGuard) {
        self.acker.attach(subscription.channel.clone(), self.connector.is_some());
        ack_timeout.buffer_age.add_taken(0, true);
        self.lag_monitor = subscription
            .lag_channel
            .clone()
            .map(|channel| LagMonitor::start(channel, &self.queue, &self.health));
        self.current = Some(subscription);
        self.started_at = Instant::now();
        self.health.set_up();
    }

    /// Starts to resubscribe after the subscription ended with `cause`.
    ///
    /// # Errors
    /// `Unsupported` if the channel belongs to the caller.
    pub(crate) fn replace(
        &mut self,
        cause: Option<lapin::Error>,
        ack_timeout: &AckTimeoutGuard,
    ) -> Result<(), Error> {
        let planned = self.acker.is_released();
        let timeout = cause.as_ref().and_then(error::consumer_timeout);
        // Redeliveries after the broker's timeout are recognised: the pipeline has those messages already.
        self.acker.detach(timeout.is_none());
        self.lag_monitor = None;
        let previous = self.current.take();
        // A failed connection reports to its channels before its own state changes.
        let alive = cause.as_ref().is_none_or(lapin::Error::is_amqp_soft_error);
        let cause =
            cause.map(|error| error::classify(format!("receive from queue {}", self.queue.name), error));
        let Some(connector) = &self.connector else {
            self.health.set_down("the channel or the subscription was closed");
            return Err(disconnect::borrowed_channel_error(&self.queue.name, cause));
        };
        let learned = timeout.filter(|timeout| ack_timeout.learn(*timeout));
        let is_logged =
            disconnect::log_disconnect(&self.queue, cause.as_ref(), timeout, learned.is_some(), planned);
        if !planned {
            self.health.set_lag(None);
            let reason = cause
                .map_or("the broker cancelled the subscription".to_owned(), |error| format!("{error:?}"));
            self.health.set_down(reason);
        }
        let previous = previous.filter(|_| alive).and_then(|subscription| {
            Some(OpenConnection { connection: subscription.connection?, defects: subscription.defects })
        });
        let was_useful = self.acker.has_delivered() || self.started_at.elapsed() >= SHORT_LIFE;
        self.short_lives = match was_useful || planned {
            true => 0,
            false => self.short_lives.saturating_add(1),
        };
        self.resubscribing = Some(tokio::spawn(subscription::resubscribe(
            Arc::clone(connector),
            self.queue.clone(),
            previous,
            Arc::clone(&self.health),
            is_logged,
            self.short_lives,
        )));
        Ok(())
    }

    /// Waits for the replacement and attaches it.
    ///
    /// # Errors
    /// `Unavailable` if the attempt was aborted; the next call starts another one.
    ///
    /// # Cancel safety
    /// A dropped call loses nothing: the replacement continues in a task of its own.
    pub(crate) async fn wait_for_replacement(&mut self, ack_timeout: &AckTimeoutGuard) -> Result<(), Error> {
        let Some(resubscribing) = &mut self.resubscribing else { return self.replace(None, ack_timeout) };
        let resubscribed = resubscribing.await;
        self.resubscribing = None;
        match resubscribed {
            Ok(subscription) => self.attach(subscription, ack_timeout),
            // The runtime is shutting down, or the caller's factory panicked: the next call tries again.
            Err(error) => {
                let operation = format!("resubscribe to queue {}", self.queue.name);
                let aborted = Error::new(ErrorKind::Unavailable, operation, "the attempt was aborted");
                return Err(aborted.with_source(error));
            }
        }
        Ok(())
    }

    /// Stops measuring and resubscribing; returns the current subscription, to be closed.
    pub(crate) fn take_for_close(&mut self) -> Option<Subscription> {
        if let Some(resubscribing) = self.resubscribing.take() {
            resubscribing.abort();
        }
        self.lag_monitor = None;
        self.current.take()
    }
}
