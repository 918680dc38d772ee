//! Requests that a process was sent and has not answered, and who is to blame when it ends: [`OpenRequests`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use onceward::HandlerError;
use tokio::time::Instant;

use crate::handlers::gather::{GatheredRun, StopReason};

/// A request whose answer is awaited.
pub(super) struct OpenRequest {
    pub(super) run: GatheredRun,
    /// Where its line is in what the process reads.
    pub(super) bytes: Range<u64>,
    /// Since when its time counts.
    pub(super) begun: Option<Instant>,
    /// Since when, and why, it is to stop.
    pub(super) stopping: Option<(StopReason, Instant)>,
}

/// The requests of a process by their numbers.
#[derive(Default)]
pub(super) struct OpenRequests(pub(super) BTreeMap<u64, OpenRequest>);

/// Why a process has ended with requests open.
#[derive(Debug)]
pub(super) enum ProcessEnd {
    /// By itself.
    Died,
    /// It was killed since a run had to stop.
    Stopped { timeout: Duration },
    /// It violated the protocol, with its answers to these requests if they are known.
    Broken { by: Vec<u64> },
    /// It did not read.
    Unused,
}

/// The verdict on a request whose process has ended.
pub(super) struct RequestEnd {
    pub(super) run: GatheredRun,
    pub(super) error: HandlerError,
    /// It was read, so that its run may be what ended the process.
    pub(super) is_suspect: bool,
}

impl OpenRequests {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The time of all requests begins, where it has not.
    pub(super) fn begin(&mut self, now: Instant) {
        for request in self.0.values_mut() {
            request.begun.get_or_insert(now);
        }
    }

    /// The requests whose time is over, and which are not asked to stop yet.
    pub(super) fn late(&self, now: Instant, timeout: Duration) -> Vec<u64> {
        let is_late = |request: &OpenRequest| {
            request.stopping.is_none() && request.begun.is_some_and(|begun| begun + timeout <= now)
        };
        self.0.iter().filter(|(_, request)| is_late(request)).map(|(id, _)| *id).collect()
    }

    /// When the first request is late that is not stopping.
    pub(super) fn next_late(&self, timeout: Duration) -> Option<Instant> {
        let running = self.0.values().filter(|request| request.stopping.is_none());
        running.filter_map(|request| request.begun).min().map(|begun| begun + timeout)
    }

    /// When the process gets SIGTERM, and when SIGKILL, where a run has to stop: neighbours that still run have half of the
    /// grace to answer first.
    pub(super) fn stop_times(&self, grace: Duration) -> Option<(Instant, Instant)> {
        let first = self.0.values().filter_map(|request| Some(request.stopping?.1)).min()?;
        let others_run = self.0.values().any(|request| request.stopping.is_none());
        Some((if others_run { first + grace / 2 } else { first }, first + grace))
    }

    /// True if a run is to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.0.values().any(|request| request.stopping.is_some())
    }

    /// The open requests that were written on one line, which is there.
    pub(super) fn on_line_at(&self, bytes: &Range<u64>) -> Vec<u64> {
        self.0.iter().filter(|(_, request)| request.bytes == *bytes).map(|(id, _)| *id).collect()
    }

    /// Takes all requests of a process that has ended, after it has read up to `read`; `what` says how it ended, and `last` is
    /// its last line of standard error as a suffix.
    ///
    /// A request of which nothing was read had no effect. Of those that were read one is blamed, if it is known: the only one,
    /// the one that was answered wrongly, the only one whose time was over. The others use no attempt.
    pub(super) fn end(&mut self, end: &ProcessEnd, read: u64, what: &str, last: &str) -> Vec<RequestEnd> {
        let all = std::mem::take(&mut self.0);
        let touched = all.values().filter(|request| read > request.bytes.start).count();
        let late = all.values().filter(|request| request.is_late() && read > request.bytes.start).count();
        let ends = all.into_iter().map(|(id, request)| {
            let is_suspect = read > request.bytes.start;
            let is_blamed = touched == 1
                || match end {
                    ProcessEnd::Broken { by } => by.contains(&id),
                    ProcessEnd::Stopped { .. } => match request.stopping {
                        // One that blocks the process makes its neighbours late.
                        Some((StopReason::Late, _)) => late == 1,
                        Some(_) => true,
                        None => false,
                    },
                    ProcessEnd::Died | ProcessEnd::Unused => false,
                };
            let error = request.error(end, read, what, if is_blamed { 1 } else { touched }, last);
            RequestEnd { run: request.run, error, is_suspect }
        });
        ends.collect()
    }
}

impl OpenRequest {
    fn is_late(&self) -> bool {
        matches!(self.stopping, Some((StopReason::Late, _)))
    }

    /// `suspects`: how many may be the cause.
    fn error(&self, end: &ProcessEnd, read: u64, what: &str, suspects: usize, last: &str) -> HandlerError {
        if read <= self.bytes.start {
            return HandlerError::unavailable(match end {
                ProcessEnd::Unused => format!("the worker process {what}{last}"),
                _ => format!("the worker process {what} before it read the request{last}"),
            });
        }
        let text = match (end, self.stopping) {
            (ProcessEnd::Stopped { .. }, Some((StopReason::Cancelled | StopReason::Dropped, _))) => {
                format!("the run was cancelled, and the worker process ended before it answered{last}")
            }
            (ProcessEnd::Stopped { timeout }, Some(_)) => {
                format!("the worker process did not answer within {timeout:?} and was ended{last}")
            }
            (ProcessEnd::Died, _) => format!("the worker process {what} before it answered{last}"),
            (ProcessEnd::Broken { .. }, _) => format!("the worker process {what}"),
            (ProcessEnd::Stopped { .. } | ProcessEnd::Unused, _) => {
                format!("the worker process {what}{last}")
            }
        };
        let error = match suspects {
            1 => HandlerError::retry(text),
            _ => {
                HandlerError::unavailable(format!("one of {suspects} messages, which run alone next: {text}"))
            }
        };
        let is_unknown = !matches!(end, ProcessEnd::Died) || read >= self.bytes.end;
        let error = if is_unknown { error.outcome_unknown() } else { error };
        if self.is_late() { error.timed_out() } else { error }
    }
}

#[cfg(test)]
mod tests {
    use onceward::{Message, Verdict};
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Requests 1 to 4, ten bytes each; 3 and 4 share a line.
    fn open(stopping: &[(u64, StopReason)]) -> OpenRequests {
        let mut open = OpenRequests::default();
        for (id, start) in [(1, 0), (2, 10), (3, 20), (4, 20)] {
            let (run, _) = GatheredRun::of(&Message::builder("x").build(), id, &CancellationToken::new());
            let stopping =
                stopping.iter().find(|(other, _)| *other == id).map(|(_, why)| (*why, Instant::now()));
            open.0.insert(id, OpenRequest { run, bytes: start..start + 10, begun: None, stopping });
        }
        open
    }

    /// The verdict on each, whether its outcome is unknown, and whether it runs alone next.
    fn ends(stopping: &[(u64, StopReason)], end: &ProcessEnd, read: u64) -> Vec<(Verdict, bool, bool)> {
        let ends = open(stopping).end(end, read, "ended", "");
        let verdict = |one: RequestEnd| (one.error.verdict(), one.error.is_outcome_unknown(), one.is_suspect);
        ends.into_iter().map(verdict).collect()
    }

    const UNREAD: (Verdict, bool, bool) = (Verdict::Unavailable, false, false);
    const INNOCENT: (Verdict, bool, bool) = (Verdict::Unavailable, true, true);
    const BLAMED: (Verdict, bool, bool) = (Verdict::Retry, true, true);

    #[tokio::test]
    async fn a_death_blames_a_request_only_if_no_other_was_read() {
        let died = |read| ends(&[], &ProcessEnd::Died, read);
        assert_eq!(died(0), [UNREAD; 4]);
        assert_eq!(died(5), [(Verdict::Retry, false, true), UNREAD, UNREAD, UNREAD]);
        assert_eq!(died(10), [BLAMED, UNREAD, UNREAD, UNREAD]);
        assert_eq!(died(15), [INNOCENT, (Verdict::Unavailable, false, true), UNREAD, UNREAD]);
        assert_eq!(died(40), [INNOCENT; 4]);
    }

    #[tokio::test]
    async fn whose_time_was_over_is_blamed_unless_another_was_late_as_well() {
        let stopped = ProcessEnd::Stopped { timeout: Duration::from_secs(1) };
        let late = |ids: &[u64]| {
            let late: Vec<_> = ids.iter().map(|id| (*id, StopReason::Late)).collect();
            ends(&late, &stopped, 40)
        };
        assert_eq!(late(&[2]), [INNOCENT, BLAMED, INNOCENT, INNOCENT]);
        assert_eq!(late(&[3]), [INNOCENT, INNOCENT, BLAMED, INNOCENT]);
        for several in [&[1, 2][..], &[1, 3, 4], &[3, 4], &[1, 2, 3, 4]] {
            assert_eq!(late(several), [INNOCENT; 4], "{several:?}");
        }
        assert_eq!(ends(&[(4, StopReason::Cancelled)], &stopped, 40)[3], BLAMED);
    }

    #[tokio::test]
    async fn an_invalid_answer_blames_its_own_request() {
        let broken = ProcessEnd::Broken { by: vec![3, 4] };
        assert_eq!(ends(&[], &broken, 40), [INNOCENT, INNOCENT, BLAMED, BLAMED]);
        assert_eq!(
            ends(&[], &ProcessEnd::Broken { by: Vec::new() }, 20),
            [INNOCENT, INNOCENT, UNREAD, UNREAD]
        );
    }

    #[tokio::test]
    async fn neighbours_have_half_of_the_grace() {
        let grace = Duration::from_secs(4);
        assert_eq!(open(&[]).stop_times(grace), None);
        let all = open(&[1, 2, 3, 4].map(|id| (id, StopReason::Cancelled)));
        let (term, kill) = all.stop_times(grace).unwrap();
        assert_eq!(kill - term, grace);
        let (term, kill) = open(&[(1, StopReason::Late)]).stop_times(grace).unwrap();
        assert_eq!(kill - term, grace / 2);
    }
}
