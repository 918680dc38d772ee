//! Pool of worker processes, with restarts: [`WorkerPool`], [`WorkerSeat`].

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::Duration;

use onceward::HandlerError;
use onceward::telemetry::RateLimited;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::options::WorkerOptions;
use super::service::{self, ProcessLife, ProcessOwner, ToProcess};
use crate::handlers::gather::GatheredRun;
use crate::handlers::suspects::SuspectRuns;

/// A fixed number of slots for processes, each with as many seats as its process takes requests at once.
#[derive(Debug)]
pub(super) struct WorkerPool {
    pub(super) options: Arc<WorkerOptions>,
    pub(super) suspects: Arc<SuspectRuns>,
    /// All seats. A caller that has one finds a slot with a free seat, and one that has those of a whole process a slot that no other
    /// has reserved: the others have no more seats than the other slots together.
    free: Arc<Semaphore>,
    slots: Mutex<Vec<WorkerSlot>>,
    /// Notified when the last seat of a slot is free.
    drained: Notify,
    /// Which of the processes that start after a failed one write to the log from their start: workers that cannot start
    /// would fill it.
    restarts: RateLimited,
}

#[derive(Debug, Default)]
struct WorkerSlot {
    /// The taken seats.
    used: u32,
    /// A run wants, or has, the process for itself.
    is_reserved: bool,
    process: Option<ProcessHandle>,
    /// The number of processes started so far.
    generation: u64,
    /// Consecutive unexpected ends of the process, without an answer in between.
    failures: u32,
    not_before: Option<Instant>,
}

/// A running process. Dropping it requests the end of the process, once its requests are answered.
#[derive(Debug)]
struct ProcessHandle {
    inbox: mpsc::UnboundedSender<ToProcess>,
    life: watch::Receiver<ProcessLife>,
    task: JoinHandle<bool>,
}

/// What a process has to do with its slot.
#[derive(Debug)]
struct SlotLink {
    pool: Weak<WorkerPool>,
    slot: usize,
    generation: u64,
}

impl ProcessOwner for SlotLink {
    fn retire(&self, failed: bool) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut slots = pool.slots();
        let Some(slot) = slots.get_mut(self.slot) else { return };
        if slot.generation == self.generation && slot.process.take().is_some() && failed {
            slot.put_off(&pool.options);
        }
    }

    fn answered(&self) {
        let Some(pool) = self.pool.upgrade() else { return };
        if let Some(slot) = pool.slots().get_mut(self.slot) {
            (slot.failures, slot.not_before) = (0, None);
        }
    }
}

impl WorkerPool {
    pub(super) fn new(options: WorkerOptions) -> Self {
        let (slots, seats) = (options.processes.max(1), options.in_flight.max(1));
        Self {
            free: Arc::new(Semaphore::new(slots as usize * seats as usize)),
            slots: Mutex::new((0..slots).map(|_| WorkerSlot::default()).collect()),
            drained: Notify::new(),
            restarts: RateLimited::default(),
            suspects: Arc::default(),
            options: Arc::new(options),
        }
    }

    pub(super) fn size(&self) -> usize {
        self.options.processes.max(1) as usize
    }

    fn seats(&self) -> u32 {
        self.options.in_flight.max(1)
    }

    /// Waits for a seat: if possible at a live and idle process, preferably one that has handled messages. `alone`: waits
    /// until the process has no other request, and keeps others from it.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again.
    pub(super) async fn seat(self: &Arc<Self>, alone: bool) -> Result<WorkerSeat, HandlerError> {
        let count = if alone { self.seats() } else { 1 };
        let permit = Arc::clone(&self.free).acquire_many_owned(count).await.map_err(|_| gone())?;
        let slot = {
            let (mut slots, now, most) = (self.slots(), Instant::now(), self.seats());
            let open = slots.iter_mut().enumerate().filter(|(_, slot)| !slot.is_reserved);
            let open = open.filter(|(_, slot)| alone || slot.used < most);
            let (index, slot) = open.min_by_key(|(_, slot)| slot.rank(alone, now)).ok_or_else(gone)?;
            slot.is_reserved = alone;
            slot.used += u32::from(!alone);
            index
        };
        let seat = WorkerSeat { pool: Arc::clone(self), slot, alone, _permit: permit };
        loop {
            let drained = self.drained.notified();
            if !alone || self.slots().get(slot).is_none_or(|slot| slot.used == 0) {
                break;
            }
            drained.await;
        }
        Ok(seat)
    }

    /// Starts the process of a slot if it is not running, after its backoff.
    ///
    /// # Errors
    /// It cannot be started; there was no effect.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again; a process that is starting continues.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        index: usize,
    ) -> Result<watch::Receiver<ProcessLife>, HandlerError> {
        loop {
            let not_before = {
                let mut slots = self.slots();
                let slot = slots.get_mut(index).ok_or_else(gone)?;
                if let Some(process) = &slot.process {
                    if !process.inbox.is_closed() {
                        return Ok(process.life.clone());
                    }
                    // Its task has ended without retiring it.
                    slot.process = None;
                    slot.put_off(&self.options);
                }
                match slot.not_before.filter(|not_before| *not_before > Instant::now()) {
                    Some(not_before) => not_before,
                    None => return self.start(index, slot),
                }
            };
            tokio::time::sleep_until(not_before).await;
        }
    }

    fn start(
        self: &Arc<Self>,
        index: usize,
        slot: &mut WorkerSlot,
    ) -> Result<watch::Receiver<ProcessLife>, HandlerError> {
        slot.generation += 1;
        let owner = SlotLink { pool: Arc::downgrade(self), slot: index, generation: slot.generation };
        let (inbox, requests) = mpsc::unbounded_channel();
        let (report, life) = watch::channel(ProcessLife::Starting);
        let parts = service::ServiceParts {
            options: Arc::clone(&self.options),
            suspects: Arc::clone(&self.suspects),
            owner: Box::new(owner),
            inbox: requests,
            life: report,
            is_heard: slot.failures == 0 || self.is_heard(),
        };
        match service::start(parts, index) {
            Ok(task) => {
                slot.process = Some(ProcessHandle { inbox, life: life.clone(), task });
                Ok(life)
            }
            Err(cause) => {
                slot.put_off(&self.options);
                Err(self.options.program.not_started(&cause))
            }
        }
    }

    /// True if a process that starts after a failed one is heard from its start. Logs how many were not since the last one.
    fn is_heard(&self) -> bool {
        let allowed = self.restarts.allow("");
        if let Some(left_out) = allowed.filter(|left_out| *left_out > 0) {
            let program = self.options.program.name();
            tracing::info!(program, left_out, "worker processes restarted whose first lines were not logged");
        }
        allowed.is_some()
    }

    /// Refuses new seats, waits for the taken ones, then ends all processes, within about `limit`. Returns the number of
    /// processes that had to be killed.
    pub(super) async fn shut_down(&self, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        let seats = u32::try_from(self.size()).unwrap_or(u32::MAX).saturating_mul(self.seats());
        let all = tokio::time::timeout_at(deadline, self.free.acquire_many(seats)).await;
        self.free.close();
        drop(all);
        let slots = std::mem::take(&mut *self.slots());
        self.drained.notify_waiters();
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ending = JoinSet::new();
        for slot in slots {
            let is_idle = slot.used == 0 && !slot.is_reserved;
            // A process that still has requests ends with them.
            let Some(process) = slot.process.filter(|_| is_idle) else { continue };
            let asked = process.inbox.send(ToProcess::ShutDown(left)).is_ok();
            ending.spawn(async move { process.task.await.unwrap_or(true) || !asked });
        }
        ending.join_all().await.into_iter().filter(|ended| !ended).count()
    }

    fn slots(&self) -> MutexGuard<'_, Vec<WorkerSlot>> {
        self.slots.lock()
    }
}

impl WorkerSlot {
    /// The lower, the better is it for the next request.
    fn rank(&self, alone: bool, now: Instant) -> (u8, u32, Option<Instant>) {
        let is_warm = self.process.as_ref().is_some_and(|process| process.life.borrow().is_warm());
        let class = match (&self.process, self.used) {
            // The sooner it is free.
            _ if alone && self.used > 0 => 5,
            (Some(_), 0) if is_warm => 0,
            (Some(_), 0) => 1,
            (None, _) if self.not_before.is_none_or(|not_before| not_before <= now) => 2,
            (Some(_), _) if is_warm => 3,
            (Some(_), _) => 4,
            (None, _) => 5,
        };
        (class, self.used, self.not_before)
    }

    fn put_off(&mut self, options: &WorkerOptions) {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let delay = options.restart_delay.saturating_mul(factor).min(options.max_restart_delay);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + delay);
    }
}

pub(super) fn gone() -> HandlerError {
    HandlerError::unavailable("the worker processes are shutting down")
}

/// The right to have one line of requests at a process; with `alone`, as the only one.
#[derive(Debug)]
pub(super) struct WorkerSeat {
    pool: Arc<WorkerPool>,
    slot: usize,
    alone: bool,
    _permit: OwnedSemaphorePermit,
}

impl WorkerSeat {
    /// Starts the process of this seat if it is not running, after its backoff.
    ///
    /// # Errors
    /// It cannot be started; there was no effect.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again; a process that is starting continues.
    pub(super) async fn prepare(&self) -> Result<(), HandlerError> {
        self.pool.prepare(self.slot).await.map(drop)
    }

    /// Passes runs to the process, on one line. If it takes none, they are given back.
    pub(super) fn pass(self, mut runs: Vec<GatheredRun>) {
        let process =
            self.pool.slots().get(self.slot).and_then(|slot| Some(slot.process.as_ref()?.inbox.clone()));
        let seat: Arc<dyn Any + Send + Sync> = Arc::new(self);
        for run in &mut runs {
            run.seat = Some(Arc::clone(&seat));
        }
        let refused = match process {
            Some(inbox) => inbox.send(ToProcess::Runs(runs)).err().map(|refused| refused.0),
            None => Some(ToProcess::Runs(runs)),
        };
        if let Some(ToProcess::Runs(runs)) = refused {
            runs.into_iter().for_each(GatheredRun::give_back);
        }
    }
}

impl Drop for WorkerSeat {
    fn drop(&mut self) {
        let mut slots = self.pool.slots();
        // A closed pool has dropped its slots.
        let Some(slot) = slots.get_mut(self.slot) else { return };
        if self.alone {
            slot.is_reserved = false;
        } else {
            slot.used -= 1;
        }
        if slot.used == 0 {
            drop(slots);
            self.pool.drained.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use onceward::Scope;

    use super::*;
    use crate::handlers::process::Program;

    fn pool(processes: u32, in_flight: u32) -> Arc<WorkerPool> {
        let program = Program::new(vec!["cat".to_owned()]).unwrap();
        let mut options = WorkerOptions::new(Scope::parse("a").unwrap(), program);
        (options.processes, options.in_flight) = (processes, in_flight);
        Arc::new(WorkerPool::new(options))
    }

    #[tokio::test]
    async fn a_process_whose_task_has_ended_is_replaced_after_a_backoff() {
        let pool = pool(1, 1);
        pool.prepare(0).await.unwrap();
        let inbox = {
            let slots = pool.slots();
            let process = slots[0].process.as_ref().unwrap();
            process.task.abort();
            process.inbox.clone()
        };
        inbox.closed().await;
        pool.prepare(0).await.unwrap();
        let slots = pool.slots();
        assert_eq!((slots[0].generation, slots[0].failures), (2, 1));
    }

    #[tokio::test]
    async fn a_shutdown_ends_the_wait_for_a_whole_process() {
        let pool = pool(2, 2);
        let taken = [pool.seat(false).await.unwrap(), pool.seat(false).await.unwrap()];
        let alone = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.seat(true).await.map(drop) }
        });
        while !pool.slots().iter().any(|slot| slot.is_reserved) {
            tokio::task::yield_now().await;
        }
        pool.shut_down(Duration::ZERO).await;
        tokio::time::timeout(Duration::from_secs(10), alone).await.unwrap().unwrap().unwrap();
        drop(taken);
    }
}
