//! A broker in memory with the behaviour of real ones and seeded faults: [`MemoryBroker`].

mod flow;
mod habits;
mod window;

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

pub use self::habits::Habits;
use self::window::{Unsettled, UnsettledWindow};

use crate::consumer::{Acker, Capabilities, Consumer, FlowControl, Notice, Settled};
use crate::delivery::{Delivery, Settlement, Tag};
use crate::error::{Error, ErrorKind};
use crate::message::{Message, MessageBuilder, Position};

/// The most copies that [`Habits::duplicate`] makes for each message published, on average.
const COPIES_PER_MESSAGE: u64 = 50;

/// A broker in memory, for tests and simulations. Clones share it. Consumers of one broker compete.
///
/// It delivers in order of publication. A message that is not acked is redelivered, at its old place in the order: when
/// it is given back, when its visibility ends, when the consumer is closed or dropped, or when its connection breaks.
/// Only one that is given back with a delay, where the broker keeps delays, comes behind those that wait.
#[derive(Clone)]
pub struct MemoryBroker(Arc<MemoryBrokerParts>);

struct MemoryBrokerParts {
    habits: Habits,
    state: Mutex<MemoryBrokerState>,
    changed: Notify,
}

struct MemoryBrokerState {
    rng: fastrand::Rng,
    /// Of the positions of all messages.
    incarnation: Arc<str>,
    consumers: u64,
    published: u64,
    acked: u64,
    rejected: u64,
    deliveries: u64,
    copies: u64,
    waiting: VecDeque<Message>,
    delayed: BTreeMap<(Instant, u64), Message>,
    unsettled: UnsettledWindow,
    /// Epochs of which nothing is delivered: paused, or leaving.
    paused: BTreeSet<u64>,
    left: BTreeSet<u64>,
    /// How often a partition was assigned to a consumer again.
    assignments: HashMap<(u64, u32), u64>,
    notices: HashMap<u64, mpsc::UnboundedSender<Notice>>,
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBroker").field("depth", &self.depth()).finish_non_exhaustive()
    }
}

impl MemoryBroker {
    /// A broker with these habits.
    pub fn new(habits: Habits) -> Self {
        let state = MemoryBrokerState {
            rng: fastrand::Rng::with_seed(habits.seed),
            incarnation: "memory".into(),
            consumers: 0,
            published: 0,
            acked: 0,
            rejected: 0,
            deliveries: 0,
            copies: 0,
            waiting: VecDeque::new(),
            delayed: BTreeMap::new(),
            unsettled: UnsettledWindow::default(),
            paused: BTreeSet::new(),
            left: BTreeSet::new(),
            assignments: HashMap::new(),
            notices: HashMap::new(),
        };
        Self(Arc::new(MemoryBrokerParts { habits, state: Mutex::new(state), changed: Notify::new() }))
    }

    /// A broker whose consumers end when everything is delivered.
    pub fn finite() -> Self {
        Self::new(Habits { finite: true, ..Habits::default() })
    }

    /// Publishes a message; it gets the next position, in a partition of its own choice in turn.
    pub fn publish(&self, message: MessageBuilder) {
        let partitions = u64::from(self.0.habits.partitions.max(1));
        let in_turn = u32::try_from(self.0.lock().published % partitions).unwrap_or(0);
        self.publish_to(in_turn, message);
    }

    /// Publishes a message to a partition; it gets the next position.
    pub fn publish_to(&self, partition: u32, message: MessageBuilder) {
        let mut state = self.0.lock();
        let offset = state.published;
        state.published += 1;
        let position = Position { incarnation: Arc::clone(&state.incarnation), partition, offset };
        state.waiting.push_back(message.position(position).build());
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// A consumer of this broker.
    pub fn consumer(&self) -> MemoryConsumer {
        let mut state = self.0.lock();
        state.consumers += 1;
        MemoryConsumer { broker: self.clone(), number: state.consumers }
    }

    /// Breaks all connections: everything unsettled is redelivered, and old tags settle nothing.
    pub fn disconnect(&self) {
        self.0.lock().give_back(|_| true);
        self.0.changed.notify_waiters();
    }

    /// Breaks the connection of one consumer: its unsettled deliveries are redelivered, and its tags settle nothing.
    pub fn disconnect_consumer(&self, number: u64) {
        self.0.lock().give_back(|unsettled| unsettled.consumer == number);
        self.0.changed.notify_waiters();
    }

    /// Messages acked.
    pub fn acked(&self) -> u64 {
        self.0.lock().acked
    }

    /// Messages refused.
    pub fn rejected(&self) -> u64 {
        self.0.lock().rejected
    }

    /// Deliveries made, copies and redeliveries included.
    pub fn deliveries(&self) -> u64 {
        self.0.lock().deliveries
    }

    /// Deliveries that are out at this moment: neither settled nor taken back.
    pub fn unsettled(&self) -> usize {
        self.0.lock().unsettled.count
    }

    /// Messages that are neither acked nor refused.
    pub fn depth(&self) -> usize {
        let state = self.0.lock();
        state.waiting.len() + state.delayed.len() + state.unsettled.count
    }
}

impl MemoryBrokerParts {
    fn lock(&self) -> MutexGuard<'_, MemoryBrokerState> {
        self.state.lock()
    }

    fn error(operation: &'static str) -> Error {
        Error::new(ErrorKind::Unavailable, operation, "a seeded fault")
    }
}

impl MemoryBrokerState {
    /// These unsettled deliveries are redelivered.
    fn give_back(&mut self, which: impl Fn(&Unsettled) -> bool) {
        for unsettled in self.unsettled.take(which).into_iter().rev() {
            self.requeue(unsettled.message);
        }
    }

    /// Puts a message where it stood.
    fn requeue(&mut self, message: Message) {
        let offset = |message: &Message| message.position().map(|position| position.offset);
        let index = self.waiting.iter().position(|other| offset(other) > offset(&message));
        self.waiting.insert(index.unwrap_or(self.waiting.len()), message);
    }

    /// Queues again what is due.
    fn wake(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now) {
            let message = entry.remove();
            self.waiting.push_back(message);
        }
        let due: Vec<u64> = self
            .unsettled
            .iter()
            .filter(|(_, unsettled)| unsettled.until.is_some_and(|until| until <= now))
            .map(|(tag, _)| tag)
            .collect();
        for tag in due {
            if let Some(unsettled) = self.unsettled.remove(tag) {
                self.requeue(unsettled.message);
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let delayed = self.delayed.keys().next().map(|(at, _)| *at);
        let invisible = self.unsettled.iter().filter_map(|(_, unsettled)| unsettled.until).min();
        [delayed, invisible].into_iter().flatten().min()
    }

    fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.f64() < chance
    }
}

/// Receives from a [`MemoryBroker`].
#[derive(Debug)]
pub struct MemoryConsumer {
    broker: MemoryBroker,
    number: u64,
}

impl MemoryConsumer {
    /// The number of this consumer, from 1, and the epoch of its tags if there is one partition.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Takes what waits; `None` if the source has ended.
    fn take(&self) -> Result<Option<Vec<Delivery>>, Error> {
        let inner = &*self.broker.0;
        let habits = &inner.habits;
        let mut state = inner.lock();
        if state.chance(habits.disconnect) {
            state.give_back(|unsettled| unsettled.consumer == self.number);
            drop(state);
            inner.changed.notify_waiters();
            return Err(MemoryBrokerParts::error("receive"));
        }
        let now = Instant::now();
        // Without visibility and delays nothing is redelivered by itself: the scan would cost a benchmark its figure.
        if habits.visibility.is_some() || habits.delayed_retry {
            state.wake(now);
        }
        let mut batch = Vec::with_capacity(habits.batch.min(state.waiting.len()));
        while batch.len() < habits.batch
            && let Some((epoch, message)) = state.next_for(self.number, habits.partitions)
        {
            // Copies of copies would grow without end where connections break faster than acks arrive.
            if state.chance(habits.duplicate) && state.copies < COPIES_PER_MESSAGE * state.published {
                state.copies += 1;
                state.waiting.push_back(message.clone());
            }
            let number = state.unsettled.next_tag();
            state.deliveries += 1;
            let tag = Tag { epoch, number };
            let until = habits.visibility.map(|visibility| now + visibility);
            state.unsettled.push(Unsettled { message: message.clone(), consumer: self.number, until });
            batch.push(Delivery { message, tag });
        }
        if batch.is_empty() && habits.finite {
            let may_come_back =
                habits.delayed_retry || habits.visibility.is_some() || habits.disconnect > 0.0;
            if state.delayed.is_empty() && (state.unsettled.count == 0 || !may_come_back) {
                return Ok(None);
            }
        }
        Ok(Some(batch))
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    fn capabilities(&self) -> Capabilities {
        let habits = &self.broker.0.habits;
        Capabilities {
            delayed_retry: habits.delayed_retry,
            heartbeat: habits.visibility,
            finite: habits.finite,
            reports_idle: true,
            ..Capabilities::default()
        }
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(self.broker.clone())
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            let inner = &self.broker.0;
            let changed = inner.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            match self.take()? {
                Some(batch) if batch.is_empty() => {}
                taken => return Ok(taken),
            }
            let due = inner.lock().next_due();
            match due {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, changed).await;
                }
                None => changed.await,
            }
        }
    }

    fn flow(&self) -> Option<Arc<dyn FlowControl>> {
        (self.broker.0.habits.partitions > 1).then(|| Arc::new(self.broker.clone()) as Arc<dyn FlowControl>)
    }

    fn notices(&mut self) -> Option<mpsc::UnboundedReceiver<Notice>> {
        self.broker.notices_of(self.number)
    }

    async fn is_idle(&mut self) -> Option<bool> {
        let state = self.broker.0.lock();
        Some(state.waiting.is_empty() && state.delayed.is_empty())
    }

    async fn close(&mut self) -> Result<(), Error> {
        self.give_back();
        Ok(())
    }
}

impl MemoryConsumer {
    /// The unsettled deliveries of this consumer are redelivered at once, as when a channel closes. Where visibility is
    /// set, only its end redelivers them.
    fn give_back(&self) {
        if self.broker.0.habits.visibility.is_none() {
            self.broker.0.lock().give_back(|unsettled| unsettled.consumer == self.number);
        }
        self.broker.0.changed.notify_waiters();
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[async_trait]
impl Acker for MemoryBroker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        let habits = &self.0.habits;
        let mut guard = self.0.lock();
        let state = &mut *guard;
        let results = batch
            .iter()
            .map(|(tag, settlement)| {
                if state.chance(habits.settle_fails) {
                    return Err(MemoryBrokerParts::error("settle"));
                }
                let Some(unsettled) = state.unsettled.remove(tag.number) else {
                    return Ok(Settled::TooLate);
                };
                match settlement {
                    Settlement::Ack => state.acked += 1,
                    Settlement::Reject => state.rejected += 1,
                    Settlement::Retry { after } if habits.delayed_retry => {
                        state.delayed.insert((Instant::now() + *after, tag.number), unsettled.message);
                    }
                    Settlement::Retry { .. } | Settlement::Abandon => {
                        state.requeue(unsettled.message);
                    }
                }
                if state.chance(habits.settle_reply_lost) {
                    return Err(MemoryBrokerParts::error("settle"));
                }
                Ok(Settled::Done)
            })
            .collect();
        drop(guard);
        self.0.changed.notify_waiters();
        results
    }

    async fn extend(&self, tags: &[Tag]) -> Vec<Result<Settled, Error>> {
        let mut guard = self.0.lock();
        let state = &mut *guard;
        let until = self.0.habits.visibility.map(|visibility| Instant::now() + visibility);
        tags.iter()
            .map(|tag| match state.unsettled.get_mut(tag.number) {
                Some(unsettled) => {
                    unsettled.until = until;
                    Ok(Settled::Done)
                }
                None => Ok(Settled::TooLate),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
