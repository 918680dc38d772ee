//! Gives messages back before the broker's ack timeout is over: [`Keeper`].
//!
//! RabbitMQ closes the channel of a delivery that is held longer than `consumer_timeout`, and all deliveries of that channel
//! return to the queue. So what is held for three quarters of that time is given back alone and received again at once,
//! which restarts its time; the pipeline keeps the message and notices nothing. If nobody receives, as when the store is
//! down, the whole channel is closed instead and opened again by the next call: the messages return to the queue once and
//! stay there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::acker::{RabbitAcker, WeakAcker};
use crate::config::QueueConfig;
use crate::link::CLOSE_LIMIT;

/// The task that does it; it ends when this is dropped.
pub(crate) struct Keeper {
    task: JoinHandle<()>,
    timeout: watch::Sender<Option<Duration>>,
    pub(crate) attention: Arc<Attention>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    /// Starts it. `owned`: the channel is ours to close.
    pub(crate) fn start(acker: &RabbitAcker, queue: &QueueConfig, owned: bool) -> Self {
        let attention = Arc::new(Attention::new(queue.prefetch));
        let (timeout, changed) = watch::channel(queue.ack_timeout);
        let watch = Watch {
            acker: acker.downgrade(),
            attention: Arc::clone(&attention),
            queue: queue.clone(),
            owned,
            told: None,
            told_of_limit: None,
        };
        Self { task: tokio::spawn(watch.run(changed)), timeout, attention }
    }

    /// The broker closed the channel after this long. Answers true if that was not known.
    pub(crate) fn learn(&self, timeout: Duration) -> bool {
        self.timeout.send_if_modified(|known| {
            let is_new = known.is_none_or(|known| timeout < known);
            if is_new {
                *known = Some(timeout);
            }
            is_new
        })
    }

    /// The ack timeout as far as it is known.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        *self.timeout.borrow()
    }
}

/// Since when what the AMQP library has received and the pipeline has not taken can be there.
pub(crate) struct Attention {
    prefetch: u64,
    state: Mutex<Taken>,
}

struct Taken {
    count: u64,
    /// What is in the buffer came after this.
    fresh_at: Instant,
    /// When so many had been taken.
    mark: (Instant, u64),
    receiving: bool,
}

impl Attention {
    fn new(prefetch: u16) -> Self {
        let now = Instant::now();
        let state = Taken { count: 0, fresh_at: now, mark: (now, 0), receiving: false };
        Self { prefetch: prefetch.into(), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody waits for the next delivery, as long as the answer lives: the buffer was found empty.
    pub(crate) fn receiving(self: &Arc<Self>) -> Receiving {
        self.lock().receiving = true;
        Receiving(Arc::clone(self))
    }

    /// So many were taken from the buffer, which may be empty now.
    pub(crate) fn took(&self, count: usize, is_empty: bool) {
        let now = Instant::now();
        let mut taken = self.lock();
        taken.count += count as u64;
        if is_empty {
            taken.fresh_at = now;
            taken.mark = (now, taken.count);
        } else if taken.count - taken.mark.1 >= self.prefetch {
            // The buffer holds no more than the prefetch, in order: all that was in it at the mark has been taken.
            taken.fresh_at = taken.mark.0;
            taken.mark = (now, taken.count);
        }
    }

    /// What is in the buffer came after this.
    pub(crate) fn since(&self) -> Instant {
        self.lock().fresh_at
    }

    /// Since when the oldest can be in the buffer; `None` if it is empty.
    fn fresh_at(&self) -> Option<Instant> {
        let taken = self.lock();
        (!taken.receiving).then_some(taken.fresh_at)
    }
}

/// A call that waits for deliveries.
pub(crate) struct Receiving(Arc<Attention>);

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut taken = self.0.lock();
        taken.receiving = false;
        taken.fresh_at = Instant::now();
        taken.mark = (taken.fresh_at, taken.count);
    }
}

struct Watch {
    acker: WeakAcker,
    attention: Arc<Attention>,
    queue: QueueConfig,
    owned: bool,
    told: Option<Instant>,
    told_of_limit: Option<Instant>,
}

/// The delivery limit of a quorum queue where the configuration names none: the default since RabbitMQ 4.0. Only quorum queues
/// count deliveries.
const DELIVERY_LIMIT: u32 = 20;
/// The same thing is said once in this time.
const TELL_EVERY: Duration = Duration::from_secs(10 * 60);

impl Watch {
    async fn run(mut self, mut timeout: watch::Receiver<Option<Duration>>) {
        loop {
            let Some(known) = *timeout.borrow_and_update() else {
                if timeout.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let hold = known * 3 / 4;
            let Some(acker) = self.acker.upgrade() else { return };
            let now = Instant::now();
            let (oldest, on_wire) = acker.oldest();
            let buffered = self.attention.fresh_at().filter(|_| {
                self.owned && on_wire < usize::from(self.queue.prefetch) && !acker.is_given_back()
            });
            let due = |since: Option<Instant>| since.map(|since| since + hold);
            if due(buffered).is_some_and(|due| due <= now) && acker.has_channel() {
                self.give_all_back(&acker, known).await;
                continue;
            }
            if due(oldest).is_some_and(|due| due <= now) {
                // What would be due soon goes along.
                let then = now.checked_sub(hold * 7 / 8).unwrap_or(now);
                let counts = acker.give_back(then).await;
                self.tell(&counts, known);
            }
            drop(acker);
            let next = [due(oldest), due(buffered)].into_iter().flatten().filter(|due| *due > now).min();
            let latest = now + (hold / 4).max(Duration::from_millis(1));
            tokio::select! {
                biased;
                changed = timeout.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(next.map_or(latest, |next| next.min(latest))) => {}
            }
        }
    }

    async fn give_all_back(&self, acker: &RabbitAcker, timeout: Duration) {
        let Some(channel) = acker.give_all_back().await else { return };
        tracing::info!(
            queue = self.queue.name, ack_timeout = ?timeout,
            "no message is being taken: what was received goes back to the queue before the broker's ack timeout"
        );
        let _ = tokio::time::timeout(CLOSE_LIMIT, channel.close(200, "OK".into())).await;
    }

    fn tell(&mut self, counts: &[u32], timeout: Duration) {
        if counts.is_empty() {
            return;
        }
        let is_over = |told: Option<Instant>| told.is_none_or(|told| told.elapsed() > TELL_EVERY);
        if is_over(self.told) {
            self.told = Some(Instant::now());
            tracing::info!(
                queue = self.queue.name, messages = counts.len(), ack_timeout = ?timeout,
                "messages are held close to the broker's ack timeout: each goes back to the queue once and is received again, \
                 which uses no attempt; wait_queues_from lets long retries wait in the broker"
            );
        }
        let limit = self.queue.delivery_limit.unwrap_or(DELIVERY_LIMIT);
        let near_limit = |count: &&u32| count.saturating_add(1) >= limit;
        let near = counts.iter().filter(near_limit).count();
        if near > 0 && is_over(self.told_of_limit) {
            self.told_of_limit = Some(Instant::now());
            tracing::error!(
                queue = self.queue.name, messages = near, delivery_limit = limit, ack_timeout = ?timeout,
                "messages were held so long that the next redeliveries reach the queue's delivery limit: the broker then \
                 dead-letters them, or drops them if the queue has no dead-letter exchange; raise consumer_timeout or the \
                 delivery limit, or set wait_queues_from"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_age_of_what_is_buffered_is_never_underestimated() {
        let attention = Arc::new(Attention::new(10));
        let age = || attention.fresh_at().map(|at| at.elapsed().as_secs());
        let pass = async |secs| tokio::time::sleep(Duration::from_secs(secs)).await;
        let receiving = attention.receiving();
        pass(5).await;
        assert_eq!(age(), None, "the buffer is empty while somebody waits");
        drop(receiving);
        attention.took(3, true);
        pass(1).await;
        assert_eq!(age(), Some(1));
        attention.took(5, false);
        pass(1).await;
        assert_eq!(age(), Some(2), "what came right after the buffer was empty may still be there");
        attention.took(5, false);
        assert_eq!(age(), Some(2));
        pass(1).await;
        attention.took(10, false);
        assert_eq!(age(), Some(1), "all that was there a second ago has been taken");
    }
}
