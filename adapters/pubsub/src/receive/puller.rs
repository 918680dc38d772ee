//! Receives from the subscription's stream and passes batches to the consumer: [`Puller`].

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use google_cloud_pubsub::client::Subscriber;
use google_cloud_pubsub::model::Message;
use google_cloud_pubsub::subscriber::handler::Handler;
use google_cloud_pubsub::subscriber::{MessageStream, ShutdownBehavior};
use onceward::{Error, ErrorKind};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::source_watch::SourceWatch;
use crate::config::PubsubSubscriptionConfig;
use crate::connection::endpoint::PubsubEndpoint;
use crate::error;
use crate::settle::leases::Leases;

/// The most messages of one batch.
const BATCH: usize = 256;
/// A stream without an error for so long counts as open: Pub/Sub answers nothing before the first message.
const STEADY: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A message with its number and, if Pub/Sub counts them, its delivery attempt.
pub(crate) struct ReceivedMessage {
    pub(crate) number: u64,
    pub(crate) message: Message,
    pub(crate) attempt: Option<i32>,
}

/// Where clients come from.
pub(crate) enum ClientSource {
    /// A new one for each stream, and so a new connection.
    Endpoint(PubsubEndpoint),
    /// The caller's.
    Client(Subscriber),
}

/// Keeps one stream open and holds the messages that it delivers.
pub(crate) struct Puller {
    pub(crate) clients: ClientSource,
    pub(crate) subscription: Arc<str>,
    pub(crate) config: Arc<PubsubSubscriptionConfig>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) watch: Arc<SourceWatch>,
    /// Batches, and the error that ends the run.
    pub(crate) batches: mpsc::Sender<Result<Vec<ReceivedMessage>, Error>>,
    pub(crate) stopping: CancellationToken,
    /// The ends of streams: each has sent the acks of its messages.
    pub(crate) streams: TaskTracker,
}

/// Why a stream was given up without an error.
enum StreamEnd {
    /// To be replaced by one on a new connection.
    Replace,
    /// The consumer is closed.
    Closed,
}

impl Puller {
    /// Receives until the consumer is closed.
    pub(crate) async fn run(self) {
        let stopping = self.stopping.clone();
        let _ = stopping.run_until_cancelled(self.keep_pulling()).await;
    }

    async fn keep_pulling(&self) {
        let (mut failures, mut was_open) = (0, false);
        loop {
            let opened = Instant::now();
            let outcome = self.pull(&mut was_open).await;
            match outcome {
                Ok(StreamEnd::Closed) => return,
                Ok(StreamEnd::Replace) => failures = 0,
                Err(error) => {
                    self.watch.stream_failed(error.clone());
                    // At the start an operator has to fix it; later it may be fixed while the run waits.
                    let is_fatal = matches!(
                        error.kind(),
                        ErrorKind::Config | ErrorKind::Denied | ErrorKind::Unsupported
                    );
                    if is_fatal && !was_open && self.batches.send(Err(error)).await.is_err() {
                        return;
                    }
                    if opened.elapsed() > LONGEST_PAUSE {
                        failures = 0;
                    }
                    tokio::time::sleep(backoff(failures)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// Receives from one stream until it ends or is to be replaced.
    async fn pull(&self, was_open: &mut bool) -> Result<StreamEnd, Error> {
        let mut stream = self.open().await?;
        // Its acks are sent after it is dropped: `close` waits for that.
        let (token, dropped) = (stream.shutdown_token(), CancellationToken::new());
        let _dropped = dropped.clone().drop_guard();
        self.streams.spawn(async move {
            dropped.cancelled().await;
            token.shutdown().await;
        });
        loop {
            self.leases.room().await;
            let Some(first) = self.next(&mut stream, was_open).await? else { return Ok(StreamEnd::Replace) };
            *was_open = true;
            self.watch.received();
            let mut batch: Vec<_> = self.hold(first).into_iter().collect();
            // Those that have arrived already.
            while batch.len() < BATCH && self.leases.has_room() {
                match stream.next().now_or_never() {
                    Some(Some(Ok(next))) => batch.extend(self.hold(next)),
                    // The next call returns the error again.
                    _ => break,
                }
            }
            if self.batches.send(Ok(batch)).await.is_err() {
                return Ok(StreamEnd::Closed);
            }
        }
    }

    async fn open(&self) -> Result<MessageStream, Error> {
        let client = match &self.clients {
            ClientSource::Endpoint(endpoint) => endpoint.subscriber().await?,
            ClientSource::Client(client) => client.clone(),
        };
        let config = &self.config;
        let stream = client
            .subscribe(&*self.subscription)
            .set_max_lease_extension(config.ack_deadline)
            // Bounded by the message's retention: the pipeline knows how long a handler may run.
            .set_max_lease(Duration::MAX)
            .set_max_outstanding_messages(i64::from(config.max_outstanding_messages))
            .set_max_outstanding_bytes(i64::try_from(config.max_outstanding_bytes).unwrap_or(i64::MAX))
            .set_shutdown_behavior(ShutdownBehavior::WaitForProcessing)
            .build();
        Ok(stream)
    }

    /// The next message; `None` if the stream should be replaced.
    async fn next(
        &self,
        stream: &mut MessageStream,
        was_open: &mut bool,
    ) -> Result<Option<(Message, Handler)>, Error> {
        let mut next = pin!(stream.next());
        let mut steady = pin!(tokio::time::sleep(STEADY));
        let mut is_steady = false;
        let may_replace = matches!(self.clients, ClientSource::Endpoint(_));
        let quiet = tokio::time::sleep(self.config.reconnect_after);
        let replace = async {
            tokio::select! {
                () = quiet => {}
                () = self.watch.recovered() => {}
            }
        };
        let mut replace = pin!(replace);
        loop {
            tokio::select! {
                biased;
                next = &mut next => return match next {
                    Some(Ok(received)) => Ok(Some(received)),
                    Some(Err(error)) => Err(error::classify(format!("receive from {}", self.subscription), &error)),
                    None => Ok(None),
                },
                () = &mut steady, if !is_steady => {
                    (is_steady, *was_open) = (true, true);
                    self.watch.stream_is_steady();
                }
                () = &mut replace, if may_replace => return Ok(None),
            }
        }
    }

    /// `None`: the consumer was closed, and the message is returned.
    fn hold(&self, (message, handler): (Message, Handler)) -> Option<ReceivedMessage> {
        let attempt = handler.delivery_attempt();
        let number = self.leases.add(handler, size(&message))?;
        Some(ReceivedMessage { number, message, attempt })
    }
}

fn size(message: &Message) -> u64 {
    let attributes: usize = message.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    (message.data.len() + attributes) as u64
}

/// Backoff: doubles from 100 ms to 5 s, with jitter over its upper half.
fn backoff(failures: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_grows_to_a_limit() {
        assert!((50..=100).contains(&backoff(0).as_millis()));
        assert!((2_500..=5_000).contains(&backoff(u32::MAX).as_millis()));
    }
}
