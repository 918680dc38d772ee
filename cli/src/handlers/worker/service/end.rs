//! Ends of requests and of their process, and the verdicts that follow.

use onceward::HandlerError;
use tokio::time::Instant;

use super::{ProcessLife, ServiceEnd, ToProcess, WorkerService};
use crate::handlers::gather::{GatheredRun, StopReason};
use crate::handlers::stop;
use crate::handlers::worker::open::ProcessEnd;
use crate::handlers::worker::options::NOT_BEGUN;

impl WorkerService {
    /// A run is to stop.
    pub(super) async fn stop(&mut self, id: u64, why: StopReason) -> Option<ServiceEnd> {
        if let Some(run) = self.take_pending(id) {
            run.end(Err(HandlerError::unavailable(NOT_BEGUN)));
            return self.end_if_done().await;
        }
        let now = Instant::now();
        let request = self.open.0.get_mut(&id)?;
        request.stopping.get_or_insert((why, now));
        if why == StopReason::Cancelled {
            self.stops.push(request.run.gone(id));
        }
        self.retire(why == StopReason::Late);
        if why == StopReason::Dropped && self.open.0.contains_key(&id) {
            return Some(self.stopped().await);
        }
        self.tick(now).await
    }

    /// Acts on what time brings.
    pub(super) async fn tick(&mut self, now: Instant) -> Option<ServiceEnd> {
        if !self.reads && self.process.read() > 0 {
            self.has_read();
        }
        if self.start_until().is_some_and(|until| until <= now) {
            let start_timeout = self.parts.options.start_timeout;
            let what = match self.is_usable() {
                true => "did not begin to read its first request within its start timeout".to_owned(),
                false => {
                    format!("did not write {{\"ready\":true}} within the start timeout of {start_timeout:?}")
                }
            };
            return Some(self.unused(&what).await);
        }
        for id in self.open.late(now, self.parts.options.timeout) {
            if let Some(request) = self.open.0.get_mut(&id) {
                request.stopping = Some((StopReason::Late, now));
            }
            self.retire(true);
        }
        if let Some((term, kill)) = self.open.stop_times(self.parts.options.grace) {
            if let Some(what) = self.only_one_unread() {
                return Some(self.unused(what).await);
            }
            if kill <= now {
                return Some(self.stopped().await);
            }
            if term <= now && !self.is_terminated {
                self.is_terminated = true;
                self.process.terminate();
            }
        }
        self.end_if_done().await
    }

    /// Why a process that is to stop can be killed at once: its only request is not read.
    fn only_one_unread(&self) -> Option<&'static str> {
        let mut open = self.open.0.values();
        let (Some(request), None) = (open.next(), open.next()) else { return None };
        let is_unread = self.process.read() <= request.bytes.start;
        is_unread.then_some(match request.stopping {
            Some((StopReason::Late, _)) => "did not read the request within the handler's timeout",
            _ => "had not begun to read the request when the run was cancelled",
        })
    }

    /// Takes no more requests, and gives back those of which nothing is written.
    pub(super) fn retire(&mut self, failed: bool) {
        if self.is_retired {
            return;
        }
        self.is_retired = true;
        self.parts.owner.retire(failed);
        self.parts.inbox.close();
        for run in self.take_unwritten() {
            run.give_back();
        }
        for (_, run) in std::mem::take(&mut self.pending).into_iter().flatten() {
            run.give_back();
        }
        while let Ok(ToProcess::Runs(runs)) = self.parts.inbox.try_recv() {
            runs.into_iter().for_each(GatheredRun::give_back);
        }
    }

    /// The runs of the current line if nothing of it is written. A process that has never read does not give them to another one.
    fn take_unwritten(&mut self) -> Vec<GatheredRun> {
        if self.sent > 0 || self.line.is_empty() || !self.reads {
            return Vec::new();
        }
        let start = self.process.written();
        self.line.clear();
        let ids: Vec<_> = self.open.0.iter().filter(|(_, one)| one.bytes.start >= start).collect();
        let ids: Vec<_> = ids.into_iter().map(|(id, _)| *id).collect();
        ids.iter().filter_map(|id| self.open.0.remove(id)).map(|request| request.run).collect()
    }

    /// A retired process ends with its last request.
    pub(super) async fn end_if_done(&mut self) -> Option<ServiceEnd> {
        if !self.is_retired || !self.is_idle() {
            return None;
        }
        self.process.kill().await;
        Some(ServiceEnd)
    }

    /// The process has ended, or closed a pipe.
    pub(super) async fn died(&mut self, otherwise: &str) -> ServiceEnd {
        let was_idle = self.open.is_empty() && self.is_usable();
        // Nothing of these was written, but one that never reads must not be started for them again and again.
        let unsent: Vec<_> = if self.reads { Vec::new() } else { std::mem::take(&mut self.pending).into() };
        let (what, status) = self.process.end(otherwise).await;
        if was_idle {
            tracing::warn!(status = what, "worker process ended between messages");
        }
        self.retire_failed(&what, unsent);
        let last = self.process.last_line();
        if !self.open.is_empty()
            && let Some(status) = status
            && stop::is_part_of_shutdown(status, &self.parts.options.shutdown).await
        {
            let text = format!("the worker process {what} before it answered{last}; this program shuts down");
            for request in std::mem::take(&mut self.open.0).into_values() {
                request.run.end(Err(stop::returned(text.clone())));
            }
            return ServiceEnd;
        }
        self.finish(&ProcessEnd::Died, &what)
    }

    /// Ends a process whose runs have had their time to stop.
    pub(super) async fn stopped(&mut self) -> ServiceEnd {
        self.process.kill().await;
        self.retire(false);
        let timeout = self.parts.options.timeout;
        self.finish(
            &ProcessEnd::Stopped { timeout },
            "was ended, since a run at the same process had to stop",
        )
    }

    /// Ends a process that violates the protocol.
    pub(super) async fn broken(&mut self, by: Vec<u64>, why: &str) -> ServiceEnd {
        self.process.kill().await;
        let what = format!("{why}; it was killed");
        self.retire_failed(&what, Vec::new());
        self.finish(&ProcessEnd::Broken { by }, &what)
    }

    /// Ends a process that does not read, or does not become ready.
    async fn unused(&mut self, why: &str) -> ServiceEnd {
        self.process.kill().await;
        let what = format!("{why}; it was killed");
        let unsent = std::mem::take(&mut self.pending).into();
        self.retire_failed(&what, unsent);
        self.finish(&ProcessEnd::Unused, &what)
    }

    /// Retires the process as failed; `unsent` runs get an error instead of another process.
    fn retire_failed(&mut self, what: &str, unsent: Vec<Vec<(u64, GatheredRun)>>) {
        self.retire(true);
        let last = self.process.last_line();
        let is_started = self.is_usable();
        let text = match is_started {
            true => format!("the worker process {what} before it read the request{last}"),
            false => format!("a worker process {what} before it was ready{last}"),
        };
        self.parts.life.send_replace(ProcessLife::Ended(text.clone()));
        for (_, run) in unsent.into_iter().flatten() {
            run.end(Err(HandlerError::unavailable(text.clone())));
        }
    }

    /// Ends all runs, whose process has ended.
    fn finish(&mut self, end: &ProcessEnd, what: &str) -> ServiceEnd {
        let (read, last) = (self.process.read(), self.process.last_line());
        for ended in self.open.end(end, read, what, &last) {
            if ended.is_suspect && self.parts.options.has_neighbours() {
                self.parts.suspects.insert(ended.run.mark);
            }
            ended.run.end(Err(ended.error));
        }
        ServiceEnd
    }

    fn take_pending(&mut self, id: u64) -> Option<GatheredRun> {
        for line in &mut self.pending {
            if let Some(at) = line.iter().position(|(other, _)| *other == id) {
                return Some(line.remove(at).1);
            }
        }
        None
    }
}
