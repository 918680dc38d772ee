//! Receives deliveries while there is room, and derives the key and lane of each.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::config::Ordering;
use super::context::Context;
use super::event::Event;
use super::gate::Gate;
use super::identity::{Deriving, Identity, identify, without_key};
use super::receipt::SettleQueue;
use super::spans;
use super::start_check::ready;
use super::work::{InFlight, Plan, Work};
use crate::consumer::{Consumer, Notice};
use crate::delivery::Delivery;
use crate::error::Error;
use crate::extract::KeyExtractor;
use crate::failpoints::{self, Step};
use crate::key::{Key, KeyError};
use crate::message::{Defect, Message};
use crate::store::Reason;
use crate::telemetry::Counter;

/// Checks that messages may be taken at all, then receives until the source ends, a drain begins or an error ends the
/// run; then gives the consumer back, so that it can be closed after the last settlement.
pub(crate) async fn take_in<R: Send + Sync + 'static>(
    context: Arc<Context<R>>,
    gate: Arc<Gate>,
    settlements: Arc<SettleQueue>,
    mut consumer: Box<dyn Consumer>,
) -> (Box<dyn Consumer>, Result<(), Error>) {
    if let Err(error) = ready(&context).await {
        context.draining.cancel();
        return (consumer, Err(error));
    }
    let derive = Derive::new(&context.keys, &context.config.ordering);
    let mut deriving = Deriving::default();
    let mut notices = consumer.notices();
    let mut failures = 0;
    // A finite source may wait for its last settlements before it ends; parked messages would keep it from ending.
    let ask_if_idle = context.config.until_idle || context.capabilities.finite;
    loop {
        let received = tokio::select! {
            biased;
            () = context.draining.cancelled() => return (consumer, Ok(())),
            notice = next_notice(&mut notices) => {
                pass_on(&context, notice);
                continue;
            }
            received = async { gate.pass().await; consumer.receive().await } => received,
            () = idle(ask_if_idle) => {
                if beside_notices(&context, &mut notices, consumer.is_idle()).await == Some(true) {
                    context.send(Event::Idle);
                }
                continue;
            }
        };
        match received {
            Ok(Some(batch)) => {
                let mut works = with_receipts(batch, &settlements);
                failpoints::hit(Step::Received);
                failures = 0;
                context.count(Counter::Received, works.len());
                if context.capabilities.heartbeat.is_some() {
                    let now = Instant::now();
                    works.iter().for_each(|work| context.kept_alive.hold(work.receipt.tag(), now));
                }
                let received = context.measurer.start();
                for work in &mut works {
                    derive.identify(&context, work, &mut deriving).await;
                    work.unclaimed_since = received;
                    work.receipt.set_span(context.measurer.span(&work.message));
                    spans::note_key(work);
                }
                deriving.count(&context.counters);
                gate.sent();
                context.send(Event::Arrived(works));
            }
            Ok(None) => {
                context.send(Event::End);
                return (consumer, Ok(()));
            }
            Err(error) if error.is_retryable() => {
                context.count(Counter::ReceiveErrors, 1);
                tracing::warn!(?error, "receive failed; retrying");
                let pause = context.pause(Duration::from_millis(100), failures, Duration::from_secs(5));
                failures += 1;
                tokio::select! {
                    biased;
                    () = context.draining.cancelled() => return (consumer, Ok(())),
                    () = beside_notices(&context, &mut notices, tokio::time::sleep(pause)) => {}
                }
            }
            Err(error) => {
                context.draining.cancel();
                return (consumer, Err(error));
            }
        }
    }
}

/// Mints the receipts of a batch, before anything is awaited: from here on a delivery that is dropped is abandoned.
fn with_receipts(batch: Vec<Delivery>, settlements: &Arc<SettleQueue>) -> Vec<Work> {
    let work = |Delivery { message, tag }| Box::new(InFlight::new(message, settlements.receipt(tag)));
    batch.into_iter().map(work).collect()
}

fn pass_on<R>(context: &Context<R>, notice: Notice) {
    match notice {
        Notice::Leaving { epoch } => context.send(Event::Leaving { epoch }),
    }
}

/// Awaits `work`, and passes on what the source reports meanwhile: a partition that leaves must not wait for it.
async fn beside_notices<R, T>(
    context: &Context<R>,
    notices: &mut Option<mpsc::UnboundedReceiver<Notice>>,
    work: impl Future<Output = T>,
) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            notice = next_notice(notices) => pass_on(context, notice),
            done = &mut work => return done,
        }
    }
}

/// The next notice of the source; none ever comes from one that gives none.
async fn next_notice(notices: &mut Option<mpsc::UnboundedReceiver<Notice>>) -> Notice {
    if let Some(receiver) = notices {
        if let Some(notice) = receiver.recv().await {
            return notice;
        }
        *notices = None;
    }
    std::future::pending().await
}

/// How long a source must be quiet before it is asked whether it is idle.
const QUIET: Duration = Duration::from_millis(200);

async fn idle(wanted: bool) {
    if wanted { tokio::time::sleep(QUIET).await } else { std::future::pending().await }
}

/// From so many bytes on, a payload is read on a thread that may block: it takes milliseconds and more.
const LARGE: usize = 256 << 10;

/// Finds key, fingerprint, generation and lane of a delivery; of a large one the lane alone.
struct Derive {
    order_by: Option<OrderBy>,
    hasher: RandomState,
}

struct OrderBy {
    source: Arc<KeyExtractor>,
    reads_payload: bool,
}

impl Derive {
    fn new(keys: &KeyExtractor, ordering: &Ordering) -> Self {
        let order_by = match ordering {
            Ordering::By(source) => Some(OrderBy {
                source: Arc::new(keys.with_sources(vec![source.clone()])),
                reads_payload: source.reads_payload(),
            }),
            _ => None,
        };
        Self { order_by, hasher: RandomState::new() }
    }

    async fn identify<R>(&self, context: &Context<R>, work: &mut InFlight, deriving: &mut Deriving) {
        let message = &work.message;
        let oversize = oversize(context, message);
        let lane = match oversize {
            None => self.lane(&context.config.ordering, message).await,
            Some(_) => Ok(None),
        };
        let identity = match (&lane, oversize) {
            (_, Some(defect)) => Identity::without_key(Plan::Letter(Reason::Defect, defect.to_string())),
            (Err(error), None) => Identity::without_key(unordered(context, message, error)),
            // A defect is known already.
            (Ok(_), None) if message.payload().len() >= LARGE && message.defect().is_none() => {
                Identity::without_key(Plan::Identify)
            }
            (Ok(_), None) => identify(context, message, deriving),
        };
        Identity {
            plan: work.plan,
            fingerprint: work.fingerprint,
            generation: work.generation,
            unproven: work.unproven,
        } = identity;
        work.lane = lane.unwrap_or_default();
    }

    /// A lane is a 64-bit hash: messages of two order keys that share one merely wait for each other.
    /// An error: there is an order key, and it cannot be used.
    async fn lane(&self, ordering: &Ordering, message: &Message) -> Result<Option<u64>, KeyError> {
        Ok(match ordering {
            Ordering::None => None,
            Ordering::Partition => {
                let position = message.position();
                Some(
                    self.hasher
                        .hash_one(position.map(|position| (&position.incarnation, position.partition))),
                )
            }
            Ordering::BrokerKey => message.order_key().map(|key| self.hasher.hash_one(key)),
            Ordering::By(_) => {
                let Some(order_by) = &self.order_by else { return Ok(None) };
                match order_by.key_of(message).await {
                    Ok(key) => Some(self.hasher.hash_one(key.as_bytes())),
                    Err(error) if error.is_unusable() && message.defect().is_none() => return Err(error),
                    Err(_) => None,
                }
            }
        })
    }
}

/// The error for a message whose payload is larger than configured.
fn oversize<R>(context: &Context<R>, message: &Message) -> Option<Defect> {
    let (bytes, limit) = (message.payload().len(), context.config.max_message_bytes?);
    let is_larger = bytes > limit && message.defect().is_none();
    is_larger.then_some(Defect::Oversize { bytes: bytes as u64, limit: limit as u64 })
}

impl OrderBy {
    /// Later messages wait, since they may be of the same lane; those in the pipeline go on.
    async fn key_of(&self, message: &Message) -> Result<Key, KeyError> {
        if !self.reads_payload || message.payload().len() < LARGE {
            return self.source.key_of(message);
        }
        let (source, message) = (Arc::clone(&self.source), message.clone());
        match tokio::task::spawn_blocking(move || source.key_of(&message)).await {
            Ok(found) => found,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is being torn down.
                Err(_) => Err(KeyError::Missing),
            },
        }
    }
}

/// The plan for a message whose place in the order is unknown: as without a key.
fn unordered<R>(context: &Context<R>, message: &Message, error: &KeyError) -> Plan {
    match without_key(context, message, error) {
        Plan::Letter(reason, text) => Plan::Letter(reason, format!("the order key cannot be used: {text}")),
        other => other,
    }
}
