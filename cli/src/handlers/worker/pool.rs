//! The worker processes, their restarts, and who holds which: [`Pool`], [`Seat`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use onceward::{HandlerError, Message};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::WorkerOptions;
use super::process::{Reply, WorkerProcess};

/// The result of a run.
pub(super) type Asked = Result<Option<Bytes>, HandlerError>;

/// A fixed number of places for processes. A message takes a seat, and with it one process for itself.
#[derive(Debug)]
pub(super) struct Pool {
    free: Arc<Semaphore>,
    places: Mutex<Vec<Place>>,
    size: u32,
}

/// A place that no message holds.
#[derive(Debug)]
struct Place {
    index: usize,
    process: Option<WorkerProcess>,
    /// Ends in a row, without an answer in between, that nobody asked for.
    failures: u32,
    not_before: Option<Instant>,
}

impl Pool {
    pub(super) fn new(size: u32) -> Self {
        let place = |index| Place { index, process: None, failures: 0, not_before: None };
        Self {
            free: Arc::new(Semaphore::new(size as usize)),
            places: Mutex::new((0..size as usize).map(place).collect()),
            size,
        }
    }

    /// Waits for a seat: with a live process if there is one, best one that has worked already, else the one that may start its process soonest.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub(super) async fn seat(self: &Arc<Self>) -> Result<Seat, HandlerError> {
        let permit = Arc::clone(&self.free).acquire_owned().await.map_err(|_| gone())?;
        let mut places = self.places();
        let best = places.iter().enumerate().min_by_key(|(_, place)| {
            let process = place.process.as_ref();
            (process.is_none(), !process.is_some_and(WorkerProcess::is_warm), place.not_before)
        });
        let place = best.map(|(at, _)| at).map(|at| places.swap_remove(at)).ok_or_else(gone)?;
        Ok(Seat { pool: Arc::clone(self), place: Some(place), asking: false, _permit: permit })
    }

    /// Refuses new seats, waits for those that are taken, then ends all processes; all of it within about `limit`.
    /// Answers how many did not end by themselves.
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

    fn places(&self) -> std::sync::MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One place, held by one message. Dropped while the process is being asked, it kills the process: its run must not
/// outlive the message's.
#[derive(Debug)]
pub(super) struct Seat {
    pool: Arc<Pool>,
    /// Taken when dropped only.
    place: Option<Place>,
    asking: bool,
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    /// Starts the process of this seat if it is not running, after its backoff, and waits until it is ready, if it is to
    /// say so. Where that fails nothing has happened.
    ///
    /// # Cancel safety
    /// It may be dropped and called again: a process that is starting goes on with that.
    pub(super) async fn prepare(&mut self, options: &WorkerOptions) -> Result<(), HandlerError> {
        let place = self.place.as_mut().ok_or_else(gone)?;
        if place.process.as_mut().is_some_and(|process| !process.is_alive()) {
            tracing::warn!(process = place.index, "a worker process ended between two messages");
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

    /// Gives a prepared process one message.
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
            // It was not the process's fault: the next one may start at once.
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

impl Place {
    fn put_off(&mut self, options: &WorkerOptions) {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let delay = options.restart_delay.saturating_mul(factor).min(options.max_restart_delay);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + delay);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(mut place) = self.place.take() {
            if self.asking {
                place.process = None;
            }
            // A closed pool has given up its places; this one goes, and its process with it.
            if !self.pool.free.is_closed() {
                self.pool.places().push(place);
            }
        }
    }
}
