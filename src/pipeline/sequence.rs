//! Runs a sequence: consecutive deliveries of a lane, claimed together, whose handlers run one after the other.
//!
//! ```text
//!  claims of one call ──▶ turn 1 ──▶ turn 2 ──▶ turn 3 ──▶ …      handlers, one by one
//!                           │ sent     │ sent     │ sent           completions, gathered and not waited for
//!                           ▼          ▼          ▼
//!                        durable?   durable?   durable? ──▶ settled in the order of the lane
//! ```
//!
//! A turn begins when the run before it has succeeded and its completion has been sent. So the first effects of a lane come in
//! its order whatever dies: an effect that is repeated after a crash has happened before those behind it. Anything but a success
//! ends the turns, and so does time; what has not started is released, and returns to its lane. A delivery that asks for a reply is
//! settled after it, which nothing else waits for.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{mem, slice, vec};

use futures_util::future::{BoxFuture, Either};
use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::time::Instant;

use super::context::Context;
use super::event::{Ended, Event, SequenceEnded};
use super::handle::{handle_one, wait_for_slot};
use super::outcomes::ended;
use super::record::{Completing, record, release_behind, start_completing};
use super::reply::{reply_and_settle, settle_unowed};
use super::runner::Runner;
use super::settle::{Settling, settle, settle_one};
use super::slots::Slot;
use super::work::{Behind, Finished, Outcome, Plan, Recorded, Start, Verdict};

/// No turn of a sequence begins later than this after the first. A copy of its last message, in another lane or process, waits for as long.
pub(super) const LONGEST_RUN: Duration = Duration::from_millis(250);

/// Takes the sequences out of the starts of a round: those of one lane stand side by side, in its order.
pub(super) fn sequences(starts: &mut Vec<Start>) -> Vec<Vec<Start>> {
    let same_lane = |one: &Start, next: &Start| {
        let (one, next) = (one.work().lane, next.work().lane);
        one.is_some() && one == next
    };
    if !starts.windows(2).any(|pair| same_lane(&pair[0], &pair[1])) {
        return Vec::new();
    }
    let mut groups: Vec<Vec<Start>> = Vec::new();
    for start in starts.drain(..) {
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(|last| same_lane(last, &start)) => group.push(start),
            _ => groups.push(vec![start]),
        }
    }
    let (alone, sequences): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| group.len() == 1);
    starts.extend(alone.into_iter().flatten());
    sequences
}

/// Takes a sequence from its claims to its settlements, and tells the dispatcher what is left of it.
pub(super) fn run_sequence<R: Runner>(context: &Context<R>, sequence: Vec<Start>) -> BoxFuture<'_, ()> {
    Box::pin(run(context, sequence))
}

async fn run<R: Runner>(context: &Context<R>, sequence: Vec<Start>) {
    let Some(first) = sequence.first() else { return };
    let (lane, is_turn) = (first.work().lane, first.work().turn.is_some());
    let Some(lane) = lane else { return };
    let length = sequence.len();
    let slot = match &context.slots {
        Some(slots) => wait_for_slot(context, slots, first.work(), first.claim()).await,
        None => None,
    };
    let began = Instant::now();
    // Without a slot no turn begins. A drain stops the turns by itself, and settles what needs no run.
    let has_none = context.slots.is_some() && slot.is_none();
    let stop = AtomicBool::new(has_none && !context.draining.is_cancelled());
    let mut left =
        SequenceEnded { lane, is_turn, count: 0, took: Duration::ZERO, first: None, behind: Vec::new() };
    let mut records =
        pin!(turns(context, sequence, slot, began, &stop).buffered(length).ready_chunks(length));
    let mut stopped = false;
    // Nothing waits for replies but the settlement of their messages.
    let mut replying = context.replies.as_ref().map(|_| FuturesUnordered::new());
    loop {
        let chunk = match &mut replying {
            None => records.next().await,
            Some(replying) => tokio::select! {
                biased;
                Some(()) = replying.next() => continue,
                chunk = records.next() => chunk,
            },
        };
        let Some(chunk) = chunk else { break };
        let mut passed = Vec::with_capacity(chunk.len());
        for (ended, record) in chunk {
            if let Some(ended) = ended {
                left.count += 1;
                left.took = ended - began;
            }
            match record {
                Turned::Behind(rest) => left.behind.extend(rest),
                Turned::Recorded(recorded) if stopped => left.behind.push(behind(recorded)),
                Turned::Recorded(mut recorded) => match recorded.verdict {
                    Verdict::Again { .. } | Verdict::Parked { .. } | Verdict::StoreDown => {
                        stopped = true;
                        left.first = Some(settle_one(recorded, &mut Settling::new(context, 1)));
                    }
                    _ => {
                        stopped = matches!(recorded.verdict, Verdict::GiveBack { .. } | Verdict::Abandon);
                        // The lane and the turn end with the sequence.
                        (recorded.work.lane, recorded.work.turn) = (None, None);
                        passed.push(recorded);
                    }
                },
            }
        }
        match (&context.replies, &mut replying) {
            (Some(replies), Some(replying)) => {
                let owed = settle_unowed(context, passed);
                replying.push(reply_and_settle(context, &**replies, owed));
            }
            _ => settle(context, passed),
        }
    }
    context.send(Event::SequenceEnded(left));
    if let Some(mut replying) = replying {
        while replying.next().await.is_some() {}
    }
}

/// A delivery that could be settled, were it not for one before it.
fn behind(Recorded { work, verdict }: Recorded) -> Behind {
    let plan = match verdict {
        Verdict::Ack(counter) => Some(Plan::Ack(counter)),
        _ => work.owed.as_deref().and_then(|owed| owed.end).map(Plan::Ack),
    };
    Behind { work, plan }
}

/// What became of a turn, or of all that had none.
enum Turned {
    Recorded(Recorded),
    Behind(Vec<Behind>),
}

/// How a turn ended, before that is recorded.
enum TurnEnd<'c> {
    Completing(Box<Completing<'c>>),
    Other(Finished),
    /// The turns are over before these.
    Behind(Vec<Start>),
}

/// The turns of a sequence that are still to come.
struct Turns<'c> {
    rest: vec::IntoIter<Start>,
    /// Until the last handler has ended; completions need no slot.
    slot: Option<Slot<'c>>,
    /// False: no further turn begins.
    goes_on: bool,
    /// When the latest turn ended.
    now: Instant,
    /// Successes that are not yet reported to the dispatcher: they are, together, as soon as a handler has to wait.
    unreported: Ended,
}

/// Runs the handlers one after the other; each future that comes out records how one ended, and says when.
fn turns<'c, R: Runner>(
    context: &'c Context<R>,
    sequence: Vec<Start>,
    slot: Option<Slot<'c>>,
    began: Instant,
    stop: &'c AtomicBool,
) -> impl Stream<Item = impl Future<Output = (Option<Instant>, Turned)> + 'c> + 'c {
    let (rest, unreported) = (sequence.into_iter(), Ended::default());
    let turns = Turns { rest, slot, goes_on: true, now: began, unreported };
    stream::unfold(Some(turns), move |turns| async move {
        let mut turns = turns?;
        let next = turns.rest.as_slice().first()?;
        // In a drain what needs no run is still settled.
        let halted = context.draining.is_cancelled() && !matches!(next, Start::Known { .. });
        let in_time = turns.now - began <= LONGEST_RUN;
        if turns.goes_on && in_time && !halted && !stop.load(Ordering::Relaxed) {
            let start = turns.rest.next()?;
            let end = turn(context, start, &mut turns).await;
            return Some((record_end(context, end, Some(turns.now), stop), Some(turns)));
        }
        let suspects = usize::from(turns.goes_on && next.work().turn.is_some());
        let (count, idle) = (usize::from(turns.goes_on), turns.rest.len());
        let mut ended = turns.unreported;
        ended.add(Ended { count, suspects, idle, ..Ended::default() });
        context.send(Event::Finished(ended));
        Some((record_end(context, TurnEnd::Behind(turns.rest.collect()), None, stop), None))
    })
}

/// Runs a handler and sends its completion.
async fn turn<'c, R: Runner>(context: &'c Context<R>, start: Start, turns: &mut Turns<'c>) -> TurnEnd<'c> {
    let time = context.measurer.round_time(turns.now);
    let mut run = pin!(handle_one(context, start, time));
    let mut finished = poll_fn(|waker| {
        let finished = run.as_mut().poll(waker);
        if finished.is_pending() && turns.unreported.runs + turns.unreported.idle > 0 {
            context.send(Event::Finished(mem::take(&mut turns.unreported)));
        }
        finished
    })
    .await;
    turns.goes_on = matches!(finished.outcome, Outcome::Succeeded(_) | Outcome::Decided(Verdict::Ack(_)));
    let mut ended = ended(context, slice::from_mut(&mut finished));
    let is_last = turns.rest.len() == 0;
    if turns.goes_on && !is_last {
        // A sequence has one slot, and is one turn of suspects.
        (ended.count, ended.suspects) = (0, 0);
        turns.unreported.add(ended);
    } else {
        turns.slot = None;
        // A failure counts after the successes before it.
        if !ended.failed.is_empty() {
            context.send(Event::Finished(mem::take(&mut turns.unreported)));
        }
        turns.unreported.add(ended);
        context.send(Event::Finished(mem::take(&mut turns.unreported)));
    }
    turns.now = Instant::now();
    match start_completing(context, finished) {
        Either::Left(completing) => TurnEnd::Completing(completing),
        Either::Right(finished) => TurnEnd::Other(finished),
    }
}

async fn record_end<R: Runner>(
    context: &Context<R>,
    end: TurnEnd<'_>,
    ended: Option<Instant>,
    stop: &AtomicBool,
) -> (Option<Instant>, Turned) {
    // Nearly all turns end as the first; the others have places of their own, so that those are not as large.
    let turned = match end {
        TurnEnd::Completing(completing) => Turned::Recorded(completing.known(context, stop).await),
        TurnEnd::Behind(rest) => Turned::Behind(Box::pin(release_behind(context, rest)).await),
        TurnEnd::Other(finished) => {
            let recorded: Vec<_> = Box::pin(record(context, vec![finished]).concat()).await;
            // Each delivery comes out once.
            recorded.into_iter().next().map_or_else(|| Turned::Behind(Vec::new()), Turned::Recorded)
        }
    };
    (ended, turned)
}
