//! The handle through which the poll thread, the monitor, the consumer and the acker share one state: [`Handle`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onceward::Error;
use onceward::adapter::Notice;
use onceward::telemetry::SourceHealth;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::config::TopicConfig;
use crate::state::ConsumerState;

/// Owns a [`ConsumerState`] under a lock, and wakes the threads that a transition concerns.
pub(crate) struct Handle {
    pub(crate) topics: Arc<TopicConfig>,
    pub(crate) cluster: Arc<str>,
    pub(crate) health: Arc<SourceHealth>,
    inner: Mutex<SharedState>,
    /// Wakes the poll thread, which waits for room in the buffer.
    poll: Condvar,
    monitor: Condvar,
    /// Wakes `receive`.
    receive: Notify,
    /// The state's generation, readable without the lock.
    generation: AtomicU64,
}

struct SharedState {
    state: ConsumerState,
    lifecycle: Lifecycle,
    errors: VecDeque<Error>,
    notices: Option<mpsc::UnboundedSender<Notice>>,
    idle_questions: Vec<oneshot::Sender<Option<bool>>>,
}

#[derive(Debug, Default)]
struct Lifecycle {
    /// The poll thread has to stop.
    stop: bool,
    /// The client is being closed: partitions are given up without waiting.
    closing: bool,
    /// The poll thread has ended.
    ended: bool,
    /// For tests: makes the client forget all partitions silently.
    #[cfg(test)]
    sabotaged: bool,
}

impl Handle {
    pub(crate) fn new(topics: TopicConfig, cluster: Arc<str>) -> Arc<Self> {
        let topics = Arc::new(topics);
        let inner = SharedState {
            state: ConsumerState::new(Arc::clone(&topics), Arc::clone(&cluster)),
            lifecycle: Lifecycle::default(),
            errors: VecDeque::new(),
            notices: None,
            idle_questions: Vec::new(),
        };
        Arc::new(Self {
            topics,
            cluster,
            health: Arc::default(),
            inner: Mutex::new(inner),
            poll: Condvar::new(),
            monitor: Condvar::new(),
            receive: Notify::new(),
            generation: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, SharedState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `step` on the state, and wakes the threads that it concerns. `step` must not block.
    pub(crate) fn with<T>(&self, step: impl FnOnce(&mut ConsumerState) -> T) -> T {
        let mut inner = self.lock();
        let result = step(&mut inner.state);
        self.generation.store(inner.state.generation, Ordering::SeqCst);
        let signals = inner.state.take_signals();
        if let Some(notices) = &inner.notices {
            for epoch in signals.leaving {
                // The pipeline may have dropped the receiver.
                let _ = notices.send(Notice::Leaving { epoch });
            }
        }
        drop(inner);
        if signals.poll {
            self.poll.notify_all();
        }
        if signals.monitor {
            self.monitor.notify_all();
        }
        if signals.receive {
            self.receive.notify_one();
        }
        result
    }

    /// Returns a number that changes with every change of the assignment. Takes no lock.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Waits up to `limit` for room in the buffer, or the order to stop. Returns true if there is room.
    pub(crate) fn wait_for_room(&self, limit: Duration) -> bool {
        let is_full = |inner: &mut SharedState| !inner.lifecycle.stop && !inner.state.has_room();
        let waited = self.poll.wait_timeout_while(self.lock(), limit, is_full);
        waited.unwrap_or_else(PoisonError::into_inner).0.state.has_room()
    }

    /// Waits until the logs have to be checked: after `soon` if there are doubts, else after `regular`, or when a check is
    /// requested. Returns false if the consumer stops.
    pub(crate) fn wait_for_log_check(&self, soon: Duration, regular: Duration) -> bool {
        let inner = self.lock();
        let limit = if inner.state.has_doubts() { soon } else { regular };
        let is_idle = |inner: &mut SharedState| !inner.lifecycle.stop && !inner.state.check_logs;
        let waited = self.monitor.wait_timeout_while(inner, limit, is_idle);
        let mut inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        inner.state.check_logs = false;
        !inner.lifecycle.stop
    }

    /// Waits until something may be received, or `until`.
    ///
    /// # Cancel safety
    /// A wake-up is not lost if this future is dropped before it completes.
    pub(crate) async fn wait_to_receive(&self, until: Option<Instant>) {
        match until {
            Some(at) => drop(tokio::time::timeout_at(at.into(), self.receive.notified()).await),
            None => self.receive.notified().await,
        }
    }

    /// Queues an error that needs a person for the next `receive`, unless it repeats the last one.
    pub(crate) fn report(&self, error: Error) {
        let mut inner = self.lock();
        if inner.errors.back().is_none_or(|last| last.to_string() != error.to_string()) {
            inner.errors.push_back(error);
        }
        drop(inner);
        self.receive.notify_one();
    }

    pub(crate) fn take_error(&self) -> Option<Error> {
        self.lock().errors.pop_front()
    }

    /// Sets the receiver of notices about partitions that leave.
    pub(crate) fn set_notices(&self, notices: mpsc::UnboundedSender<Notice>) {
        self.lock().notices = Some(notices);
    }

    /// Asks the poll thread whether there is nothing to deliver. The answer never comes if the thread has ended.
    pub(crate) fn ask_idle(&self) -> oneshot::Receiver<Option<bool>> {
        let (question, answer) = oneshot::channel();
        let mut inner = self.lock();
        if !inner.lifecycle.ended {
            inner.idle_questions.push(question);
        }
        answer
    }

    pub(crate) fn take_idle_questions(&self) -> Vec<oneshot::Sender<Option<bool>>> {
        std::mem::take(&mut self.lock().idle_questions)
    }

    /// Orders the threads to stop.
    pub(crate) fn stop(&self) {
        self.lock().lifecycle.stop = true;
        self.poll.notify_all();
        self.monitor.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.lock().lifecycle.stop
    }

    /// Sets whether the client is being closed, so that revoked partitions are given up without waiting.
    pub(crate) fn set_closing(&self, closing: bool) {
        self.lock().lifecycle.closing = closing;
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.lock().lifecycle.closing
    }

    /// Records that the poll thread has ended, and wakes all waiters.
    pub(crate) fn end(&self) {
        self.with(ConsumerState::forget_all);
        {
            let mut inner = self.lock();
            (inner.lifecycle.stop, inner.lifecycle.ended) = (true, true);
            inner.idle_questions.clear();
            inner.notices = None;
        }
        self.poll.notify_all();
        self.monitor.notify_all();
        self.receive.notify_waiters();
        self.receive.notify_one();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().lifecycle.ended
    }
}

#[cfg(test)]
impl Handle {
    /// Makes the client forget all partitions silently.
    pub(crate) fn sabotage(&self) {
        self.lock().lifecycle.sabotaged = true;
    }

    pub(crate) fn take_sabotage(&self) -> bool {
        std::mem::take(&mut self.lock().lifecycle.sabotaged)
    }

    pub(crate) fn is_sabotaged(&self) -> bool {
        self.lock().lifecycle.sabotaged
    }
}
