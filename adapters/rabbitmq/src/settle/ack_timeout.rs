//! Requeues messages before the broker's ack timeout closes their channel: [`AckTimeoutGuard`].
//!
//! RabbitMQ closes the channel of a delivery that stays unacknowledged longer than `consumer_timeout`, and requeues all
//! deliveries of that channel. A message that is held for three quarters of that time is therefore requeued alone and
//! received again immediately, which restarts its timeout; the pipeline keeps the message and notices nothing. If the
//! pipeline does not receive, as when the store is down, the whole channel is closed instead and reopened by the next
//! `receive`: the messages return to the queue once and stay there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::acker::{RabbitmqAcker, WeakAcker};
use crate::config::RabbitmqQueueConfig;
use crate::subscription::CLOSE_LIMIT;

/// The handle of the background task, which ends when this is dropped.
pub(crate) struct AckTimeoutGuard {
    task: JoinHandle<()>,
    timeout: watch::Sender<Option<Duration>>,
    pub(crate) buffer_age: Arc<BufferAge>,
}

impl Drop for AckTimeoutGuard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AckTimeoutGuard {
    /// Starts the task. `owned`: the channel may be closed by us.
    pub(crate) fn start(acker: &RabbitmqAcker, queue: &RabbitmqQueueConfig, owned: bool) -> Self {
        let buffer_age = Arc::new(BufferAge::new(queue.prefetch));
        let (timeout, changed) = watch::channel(queue.ack_timeout);
        let task = AckTimeoutTask {
            acker: acker.downgrade(),
            buffer_age: Arc::clone(&buffer_age),
            queue: queue.clone(),
            owned,
            requeue_logged_at: None,
            limit_logged_at: None,
        };
        Self { task: tokio::spawn(task.run(changed)), timeout, buffer_age }
    }

    /// Records the timeout after which the broker closed the channel. Returns true if it is shorter than known so far.
    pub(crate) fn learn(&self, timeout: Duration) -> bool {
        self.timeout.send_if_modified(|known| {
            let is_new = known.is_none_or(|known| timeout < known);
            if is_new {
                *known = Some(timeout);
            }
            is_new
        })
    }

    /// The ack timeout, if known.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        *self.timeout.borrow()
    }
}

/// The age of deliveries that the AMQP library has buffered and the pipeline has not taken.
pub(crate) struct BufferAge {
    prefetch: u64,
    state: Mutex<BufferState>,
}

struct BufferState {
    count: u64,
    /// All buffered deliveries were received after this.
    fresh_at: Instant,
    /// A moment, and the number of deliveries taken until then.
    mark: (Instant, u64),
    receiving: bool,
}

impl BufferAge {
    fn new(prefetch: u16) -> Self {
        let now = Instant::now();
        let state = BufferState { count: 0, fresh_at: now, mark: (now, 0), receiving: false };
        Self { prefetch: prefetch.into(), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, BufferState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a waiting `receive` call, as long as the guard lives: the buffer was found empty.
    pub(crate) fn receiving(self: &Arc<Self>) -> ReceiveGuard {
        self.lock().receiving = true;
        ReceiveGuard(Arc::clone(self))
    }

    /// Adds `count` deliveries taken from the buffer; `is_empty` if the buffer was empty afterwards.
    pub(crate) fn add_taken(&self, count: usize, is_empty: bool) {
        let now = Instant::now();
        let mut taken = self.lock();
        taken.count += count as u64;
        if is_empty {
            taken.fresh_at = now;
            taken.mark = (now, taken.count);
        } else if taken.count - taken.mark.1 >= self.prefetch {
            // The buffer holds at most the prefetch, in order: everything buffered at the mark has been taken.
            taken.fresh_at = taken.mark.0;
            taken.mark = (now, taken.count);
        }
    }

    /// All buffered deliveries were received after this.
    pub(crate) fn received_since(&self) -> Instant {
        self.lock().fresh_at
    }

    /// A lower bound of the time at which the oldest buffered delivery was received; `None` if the buffer is empty.
    fn oldest_buffered(&self) -> Option<Instant> {
        let taken = self.lock();
        (!taken.receiving).then_some(taken.fresh_at)
    }
}

/// A `receive` call that waits for deliveries.
pub(crate) struct ReceiveGuard(Arc<BufferAge>);

impl Drop for ReceiveGuard {
    fn drop(&mut self) {
        let mut taken = self.0.lock();
        taken.receiving = false;
        taken.fresh_at = Instant::now();
        taken.mark = (taken.fresh_at, taken.count);
    }
}

struct AckTimeoutTask {
    acker: WeakAcker,
    buffer_age: Arc<BufferAge>,
    queue: RabbitmqQueueConfig,
    owned: bool,
    requeue_logged_at: Option<Instant>,
    limit_logged_at: Option<Instant>,
}

/// The delivery limit of quorum queues since RabbitMQ 4.0, used if none is configured. Only quorum queues count
/// deliveries.
const DELIVERY_LIMIT: u32 = 20;
/// The interval at which the same message is logged again.
const LOG_INTERVAL: Duration = Duration::from_secs(10 * 60);

impl AckTimeoutTask {
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
            let (oldest, unacknowledged) = acker.oldest();
            let buffered = self.buffer_age.oldest_buffered().filter(|_| {
                self.owned && unacknowledged < usize::from(self.queue.prefetch) && !acker.is_released()
            });
            let due = |since: Option<Instant>| since.map(|since| since + hold);
            if due(buffered).is_some_and(|due| due <= now) && acker.has_channel() {
                self.release_all(&acker, known).await;
                continue;
            }
            if due(oldest).is_some_and(|due| due <= now) {
                // Deliveries that would be due soon are included.
                let then = now.checked_sub(hold * 7 / 8).unwrap_or(now);
                let counts = acker.release_before(then).await;
                self.log_requeued(&counts, known);
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

    async fn release_all(&self, acker: &RabbitmqAcker, timeout: Duration) {
        let Some(channel) = acker.release_all().await else { return };
        tracing::info!(
            queue = self.queue.name, ack_timeout = ?timeout,
            "pipeline is not receiving; unprocessed messages requeued before the broker's ack timeout"
        );
        let _ = tokio::time::timeout(CLOSE_LIMIT, channel.close(200, "OK".into())).await;
    }

    fn log_requeued(&mut self, counts: &[u32], timeout: Duration) {
        if counts.is_empty() {
            return;
        }
        let may_log = |logged: Option<Instant>| logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL);
        if may_log(self.requeue_logged_at) {
            self.requeue_logged_at = Some(Instant::now());
            tracing::info!(
                queue = self.queue.name, messages = counts.len(), ack_timeout = ?timeout,
                "messages held close to the broker's ack timeout requeued and received again; this uses no attempt. \
                 wait_queues_from delays long retries on the broker instead"
            );
        }
        let limit = self.queue.delivery_limit.unwrap_or(DELIVERY_LIMIT);
        let near_limit = |count: &&u32| count.saturating_add(1) >= limit;
        let near = counts.iter().filter(near_limit).count();
        if near > 0 && may_log(self.limit_logged_at) {
            self.limit_logged_at = Some(Instant::now());
            tracing::error!(
                queue = self.queue.name, messages = near, delivery_limit = limit, ack_timeout = ?timeout,
                "messages held so long that the next redeliveries reach the queue's delivery limit: the broker then \
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
    async fn the_age_of_buffered_deliveries_is_never_underestimated() {
        let buffer_age = Arc::new(BufferAge::new(10));
        let age = || buffer_age.oldest_buffered().map(|at| at.elapsed().as_secs());
        let pass = async |secs| tokio::time::sleep(Duration::from_secs(secs)).await;
        let receiving = buffer_age.receiving();
        pass(5).await;
        assert_eq!(age(), None, "the buffer is empty while a call waits");
        drop(receiving);
        buffer_age.add_taken(3, true);
        pass(1).await;
        assert_eq!(age(), Some(1));
        buffer_age.add_taken(5, false);
        pass(1).await;
        assert_eq!(
            age(),
            Some(2),
            "a delivery received right after the buffer was empty may still be buffered"
        );
        buffer_age.add_taken(5, false);
        assert_eq!(age(), Some(2));
        pass(1).await;
        buffer_age.add_taken(10, false);
        assert_eq!(age(), Some(1), "everything buffered a second ago has been taken");
    }
}
