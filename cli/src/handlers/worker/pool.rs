//! Pool of worker processes, with restarts: [`WorkerPool`], [`WorkerSeat`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::{HandlerError, Message};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::options::WorkerOptions;
use super::process::{Reply, WorkerProcess};

/// The result of a run.
pub(super) type Asked = Result<Option<Bytes>, HandlerError>;

/// A fixed number of slots for processes. A message takes a seat, which gives it exclusive use of one process.
#[derive(Debug)]
pub(super) struct WorkerPool {
    free: Arc<Semaphore>,
    places: Mutex<Vec<PoolPlace>>,
    size: u32,
}

/// A slot that no message holds.
#[derive(Debug)]
struct PoolPlace {
    index: usize,
    process: Option<WorkerProcess>,
    /// Consecutive unexpected ends of the process, without a response in between.
    failures: u32,
    not_before: Option<Instant>,
}

impl WorkerPool {
    pub(super) fn new(size: u32) -> Self {
        let place = |index| PoolPlace { index, process: None, failures: 0, not_before: None };
        Self {
            free: Arc::new(Semaphore::new(size as usize)),
            places: Mutex::new((0..size as usize).map(place).collect()),
            size,
        }
    }

    /// Waits for a seat: with a live process if possible, preferably one that has handled messages, or else the one that may
    /// start its process first.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again.
    pub(super) async fn seat(self: &Arc<Self>) -> Result<WorkerSeat, HandlerError> {
        let permit = Arc::clone(&self.free).acquire_owned().await.map_err(|_| gone())?;
        let mut places = self.places();
        let best = places.iter().enumerate().min_by_key(|(_, place)| {
            let process = place.process.as_ref();
            (process.is_none(), !process.is_some_and(WorkerProcess::is_warm), place.not_before)
        });
        let place = best.map(|(at, _)| at).map(|at| places.swap_remove(at)).ok_or_else(gone)?;
        Ok(WorkerSeat { pool: Arc::clone(self), place: Some(place), asking: false, _permit: permit })
    }

    /// Refuses new seats, waits for the taken ones, then ends all processes, within about `limit`. Returns the number of
    /// processes that had to be killed.
    pub(super) async fn shut_down(&self, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        let all = tokio::time::timeout_at(deadline, self.free.acquire_many(self.size)).await;
        self.free.close();
        drop(all);
        let places = std::mem::take(&mut *self.places());
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ending = tokio::task::JoinSet::new();
        for process in places.into_iter().filter_map(|place| place.process) {
            ending.spawn(process.shut_down(left));
        }
        ending.join_all().await.into_iter().filter(|ended| !ended).count()
    }

    fn places(&self) -> MutexGuard<'_, Vec<PoolPlace>> {
        self.places.lock()
    }
}

/// A slot, held by one message. If dropped during a request, it kills the process, whose work must not outlive the run.
#[derive(Debug)]
pub(super) struct WorkerSeat {
    pool: Arc<WorkerPool>,
    /// Taken only when dropped.
    place: Option<PoolPlace>,
    asking: bool,
    _permit: OwnedSemaphorePermit,
}

impl WorkerSeat {
    /// Starts the process of this seat if it is not running, after its backoff, and waits until it is ready if required. An
    /// error means that there was no effect.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again; a process that is starting continues.
    pub(super) async fn prepare(&mut self, options: &WorkerOptions) -> Result<(), HandlerError> {
        let place = self.place.as_mut().ok_or_else(gone)?;
        if place.process.as_mut().is_some_and(|process| !process.is_alive()) {
            tracing::warn!(process = place.index, "worker process ended between messages");
            place.process = None;
            place.put_off(options);
        }
        if place.process.is_none() {
            if let Some(not_before) = place.not_before {
                tokio::time::sleep_until(not_before).await;
            }
            match WorkerProcess::start(options, place.index) {
                Ok(process) => place.process = Some(process),
                Err(cause) => {
                    place.put_off(options);
                    return Err(options.program.not_started(&cause));
                }
            }
        }
        if options.wait_until_ready
            && let Some(process) = &mut place.process
            && let Err(error) = process.ready(options).await
        {
            place.process = None;
            place.put_off(options);
            return Err(error);
        }
        Ok(())
    }

    /// Passes one message to a prepared process.
    ///
    /// # Cancel safety
    /// A dropped call kills the process.
    pub(super) async fn ask(&mut self, options: &WorkerOptions, message: &Message) -> Asked {
        let place = self.place.as_mut().ok_or_else(gone)?;
        let process = place.process.as_mut().ok_or_else(gone)?;
        self.asking = true;
        let reply = process.ask(options, message).await;
        self.asking = false;
        match reply {
            Reply::Answered(answer) => {
                place.failures = 0;
                place.not_before = None;
                answer
            }
            Reply::Last(answer) => {
                place.process = None;
                answer
            }
            // The process did not fail: the next one may start at once.
            Reply::Broken(error) if message.cancellation().is_cancelled() => {
                place.process = None;
                Err(error)
            }
            Reply::Broken(error) => {
                place.process = None;
                place.put_off(options);
                Err(error)
            }
        }
    }
}

fn gone() -> HandlerError {
    HandlerError::unavailable("the worker processes are shutting down")
}

impl PoolPlace {
    fn put_off(&mut self, options: &WorkerOptions) {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let delay = options.restart_delay.saturating_mul(factor).min(options.max_restart_delay);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + delay);
    }
}

impl Drop for WorkerSeat {
    fn drop(&mut self) {
        if let Some(mut place) = self.place.take() {
            if self.asking {
                place.process = None;
            }
            // A closed pool has dropped its slots; this one is dropped with its process.
            if !self.pool.free.is_closed() {
                self.pool.places().push(place);
            }
        }
    }
}
