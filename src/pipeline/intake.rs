//! Takes deliveries from the source, as long as there is room, and finds out whose they are.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::config::{Mode, OnMissingKey, Ordering};
use super::dispatch::Event;
use super::shared::Shared;
use super::start_check::ready;
use super::work::{Plan, Taken, Work};
use crate::consumer::{Consumer, Notice};
use crate::dead_letter::Republished;
use crate::delivery::Delivery;
use crate::error::Error;
use crate::failpoints::{self, Step};
use crate::key::KeyExtractor;
use crate::message::Message;
use crate::store::Reason;
use crate::telemetry::Counter;

/// Open while there is room for more deliveries, the store answers, and the dispatcher has counted what was taken so
/// far: on several threads, intake must not run ahead of the limits.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    opened: Notify,
}

#[derive(Clone, Copy, Debug)]
struct GateState {
    open: bool,
    /// Batches that were sent to the dispatcher and not looked at.
    unseen: usize,
}

impl GateState {
    fn lets_pass(self) -> bool {
        self.open && self.unseen == 0
    }
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        let state = Mutex::new(GateState { open: true, unseen: 0 });
        Arc::new(Self { state, opened: Notify::new() })
    }

    /// The dispatcher has looked at its limits.
    pub(crate) fn set_open(&self, open: bool) {
        self.change(|state| state.open = open);
    }

    /// The dispatcher has counted a batch, and will look at its limits.
    pub(crate) fn seen(&self) {
        self.change(|state| {
            state.open = false;
            state.unseen = state.unseen.saturating_sub(1);
        });
    }

    fn sent(&self) {
        self.change(|state| state.unseen += 1);
    }

    fn change(&self, change: impl FnOnce(&mut GateState)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.lets_pass();
        change(&mut state);
        if state.lets_pass() && !before {
            self.opened.notify_one();
        }
    }

    async fn pass(&self) {
        while !self.state.lock().unwrap_or_else(PoisonError::into_inner).lets_pass() {
            self.opened.notified().await;
        }
    }
}

/// Checks that messages may be taken at all, then receives until the source ends, a drain begins or an error ends the
/// run; then gives the consumer back, so that it can be closed after the last settlement.
pub(crate) async fn take_in<R: Send + Sync + 'static>(
    shared: Arc<Shared<R>>,
    gate: Arc<Gate>,
    mut consumer: Box<dyn Consumer>,
) -> (Box<dyn Consumer>, Result<(), Error>) {
    if let Err(error) = ready(&shared).await {
        shared.draining.cancel();
        return (consumer, Err(error));
    }
    let derive = Derive::new(&shared.keys, &shared.config.ordering);
    let mut notices = consumer.notices();
    let mut failures = 0;
    // A finite source may wait for its last settlements before it ends; parked messages would keep it from ending.
    let ask_if_idle = shared.config.until_idle || shared.capabilities.finite;
    loop {
        let received = tokio::select! {
            biased;
            () = shared.draining.cancelled() => return (consumer, Ok(())),
            notice = next_notice(&mut notices) => {
                match notice {
                    Notice::Leaving { epoch } => shared.tell(Event::Leaving { epoch }),
                }
                continue;
            }
            received = async { gate.pass().await; consumer.receive().await } => received,
            () = idle(ask_if_idle) => {
                if consumer.is_idle().await == Some(true) {
                    shared.tell(Event::Idle);
                }
                continue;
            }
        };
        match received {
            Ok(Some(batch)) => {
                failpoints::hit(Step::Received);
                failures = 0;
                shared.count(Counter::Received, batch.len());
                if shared.capabilities.heartbeat.is_some() {
                    let now = Instant::now();
                    batch.iter().for_each(|delivery| shared.heartbeat.hold(delivery.receipt.tag(), now));
                }
                let works = batch.into_iter().map(|delivery| derive.work(&shared, delivery)).collect();
                gate.sent();
                shared.tell(Event::Arrived(works));
            }
            Ok(None) => {
                shared.tell(Event::End);
                return (consumer, Ok(()));
            }
            Err(error) if error.is_retryable() => {
                shared.count(Counter::ReceiveErrors, 1);
                tracing::warn!(?error, "receiving failed and is repeated");
                let pause = shared.pause(Duration::from_millis(100), failures, Duration::from_secs(5));
                failures += 1;
                tokio::select! {
                    biased;
                    () = shared.draining.cancelled() => return (consumer, Ok(())),
                    () = tokio::time::sleep(pause) => {}
                }
            }
            Err(error) => {
                shared.draining.cancel();
                return (consumer, Err(error));
            }
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

/// Finds key, fingerprint, generation and lane of a delivery.
struct Derive {
    order_by: Option<KeyExtractor>,
    hasher: RandomState,
}

impl Derive {
    fn new(keys: &KeyExtractor, ordering: &Ordering) -> Self {
        let order_by = match ordering {
            Ordering::By(source) => Some(keys.with_sources(vec![source.clone()])),
            _ => None,
        };
        Self { order_by, hasher: RandomState::new() }
    }

    fn work<R>(&self, shared: &Shared<R>, Delivery { message, receipt }: Delivery) -> Work {
        let (plan, generation) = plan(shared, &message);
        let wanted = matches!(plan, Plan::Claim(_));
        let fingerprint = if wanted { shared.config.fingerprint.of(message.payload()) } else { None };
        Box::new(Taken {
            lane: self.lane(&shared.config.ordering, &message),
            size: message.size(),
            message,
            receipt,
            plan,
            fingerprint,
            generation,
            owner: None,
            leads: false,
            parked: false,
            letter_failures: 0,
            unprotected_failures: 0,
            holds: 0,
            last_delay: Duration::ZERO,
            store_tries: 0,
            lost: 0,
            turn: None,
            probe: None,
            in_doubt_since: None,
            not_before: Duration::ZERO,
            held_until: None,
            waits: false,
        })
    }

    /// A lane is a 64-bit hash: messages of two order keys that share one merely wait for each other.
    fn lane(&self, ordering: &Ordering, message: &Message) -> Option<u64> {
        match ordering {
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
                let order_by = self.order_by.as_ref()?;
                order_by.key_of(message).ok().map(|key| self.hasher.hash_one(key.as_bytes()))
            }
        }
    }
}

fn plan<R>(shared: &Shared<R>, message: &Message) -> (Plan, u32) {
    if let Some(defect) = message.defect() {
        return (Plan::Letter(Reason::Defect, defect.to_string()), 0);
    }
    let ours = shared.config.honour_own_headers.then(|| Republished::read(&shared.scope, message)).flatten();
    let generation = ours.map_or(0, |ours| ours.generation);
    if let Some(key) = ours.and_then(|ours| ours.key) {
        return (Plan::Claim(key), generation);
    }
    let error = match shared.key_of(message) {
        Ok(key) => return (Plan::Claim(key), generation),
        Err(error) => error,
    };
    shared.count(Counter::MissingKeys, 1);
    tracing::debug!(delivery = ?message, %error, "a message has no usable key");
    let plan = match shared.config.policies.on_missing_key {
        // Observing changes nothing for any message.
        _ if shared.config.mode == Mode::Observe => Plan::Unprotected,
        OnMissingKey::DeadLetter => Plan::Letter(Reason::MissingKey, error.to_string()),
        OnMissingKey::Hash => Plan::Claim(shared.keys.fallback(message)),
        OnMissingKey::Process => Plan::Unprotected,
        OnMissingKey::Reject => Plan::Reject,
    };
    (plan, generation)
}
