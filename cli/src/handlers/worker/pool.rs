//! The worker processes, their restarts, and who holds which: [`Pool`], [`Seat`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onceward::HandlerError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::WorkerOptions;
use super::process::WorkerProcess;

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

    /// Waits for a seat: with a live process if there is one, else the one that may start its process soonest.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub(super) async fn seat(self: &Arc<Self>) -> Result<Seat, HandlerError> {
        let closed = || HandlerError::retry("the worker processes are shutting down");
        let permit = Arc::clone(&self.free).acquire_owned().await.map_err(|_| closed())?;
        let mut places = self.places();
        let best =
            places.iter().enumerate().min_by_key(|(_, place)| (place.process.is_none(), place.not_before));
        let place = best.map(|(at, _)| at).map(|at| places.swap_remove(at)).ok_or_else(closed)?;
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
    /// The process of this seat, started if it is not running; a restart waits for its backoff.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub(super) async fn process(
        &mut self,
        options: &WorkerOptions,
    ) -> Result<&mut WorkerProcess, HandlerError> {
        let gone = || HandlerError::retry("the worker processes are shutting down");
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
            match WorkerProcess::start(&options.program, place.index) {
                Ok(process) => place.process = Some(process),
                Err(cause) => {
                    place.put_off(options);
                    return Err(HandlerError::retry(options.program.cannot_start(&cause)));
                }
            }
        }
        self.asking = true;
        place.process.as_mut().ok_or_else(gone)
    }

    /// True from when the process was handed out until it has [answered](Self::answered) or [ended](Self::ended).
    pub(super) fn is_asking(&self) -> bool {
        self.asking
    }

    /// The process has answered and may be asked again.
    pub(super) fn answered(&mut self) {
        self.asking = false;
        if let Some(place) = &mut self.place {
            place.failures = 0;
            place.not_before = None;
        }
    }

    /// The process has come to an end by its own fault: the next one starts after a backoff.
    pub(super) fn ended(&mut self, options: &WorkerOptions) {
        self.asking = false;
        if let Some(place) = &mut self.place {
            place.process = None;
            place.put_off(options);
        }
    }

    /// Kills the process for the message's sake, and waits until it is gone. The next one may start at once.
    pub(super) async fn kill(&mut self) {
        if let Some(place) = &mut self.place
            && let Some(mut process) = place.process.take()
        {
            process.kill().await;
        }
        self.asking = false;
    }
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
