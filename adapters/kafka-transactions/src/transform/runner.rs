//! Runs a transform on a thread of its own: [`KafkaTransform`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use onceward::{Error, ErrorKind};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::transform::config::TransformConfig;
use crate::transform::function::Transform;
use crate::transform::summary::TransformSummary;
use crate::transform::worker::TransformWorker;

/// Consumes topics, transforms each record and produces the results, in transactions that carry the consumed offsets as well:
/// *effectively-once per record*. Readers with `isolation.level=read_committed` see the results of each record once, whichever
/// process is killed.
///
/// ```text
/// poll ─▶ batch ─▶ transform, keys concurrently ─▶ begin ─▶ produce ─▶ offsets ─▶ commit
///  ▲                                                         └──── aborted, or unknown ────┐
///  └────────────────────── rewind to the group's committed offset ◀────────────────────────┘
/// ```
///
/// While a transaction is produced and committed, the next batch is consumed and transformed; it is committed after it.
///
/// It needs no store and uses no idempotency keys: a record that a producer has sent twice is two records. Effects of the
/// transformation outside Kafka may happen again. Records of one key stay in order; a failing record holds up its batch.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use onceward::{Message, Outgoing};
/// use onceward_kafka::KafkaConfig;
/// use onceward_kafka_transactions::{KafkaTransform, TransformConfig};
/// let source = KafkaConfig::new(["127.0.0.1:9092"], ["orders"], "invoicing");
/// let transform = KafkaTransform::new(TransformConfig::new(source, "invoicing-1"))?;
/// let invoice = |order: Message| async move {
///     let destination = "invoices".to_owned();
///     Ok(vec![Outgoing { destination, payload: order.payload().clone(), ..Outgoing::default() }])
/// };
/// transform.run(invoice, tokio_util::sync::CancellationToken::new()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct KafkaTransform {
    config: TransformConfig,
}

impl KafkaTransform {
    /// Checks the configuration; nothing is connected yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the problem and the fix.
    pub fn new(config: TransformConfig) -> Result<Self, Error> {
        config.check()?;
        Ok(Self { config })
    }

    /// Runs until `shutdown` fires, and then commits what is transformed within half a second.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if another process with the same transactional id has fenced this one: it must not be retried.
    /// Otherwise an error that prevents starting or continuing; uncommitted records stay in the topics.
    ///
    /// # Cancel safety
    /// A dropped run stops soon, in the background. Uncommitted records run again.
    pub async fn run(
        self,
        transform: impl Transform,
        shutdown: CancellationToken,
    ) -> Result<TransformSummary, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let (answer, ended) = oneshot::channel();
        let (runtime, stopped) = (tokio::runtime::Handle::current(), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("onceward-transform".into());
        let spawned = thread.spawn(move || {
            let worker = TransformWorker::open(self.config, transform, runtime, stopped);
            // The run may have been dropped.
            let _ = answer.send(worker.and_then(TransformWorker::run));
        });
        spawned.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "start a transform", "starting a thread failed")
                .with_source(error)
        })?;
        let _stopping = Stopping(Arc::clone(&stop));
        tokio::pin!(ended);
        let ended = tokio::select! {
            biased;
            ended = &mut ended => ended,
            () = shutdown.cancelled() => {
                stop.store(true, Ordering::Relaxed);
                ended.await
            }
        };
        ended.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, "run a transform", "the thread panicked"))
        })
    }
}

/// Stops the thread when the run is over or dropped.
struct Stopping(Arc<AtomicBool>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
