//! Settles deliveries whose record is durable, and reports them to the dispatcher.

use super::context::Context;
use super::event::{Event, Report};
use super::limits::LONGEST;
use super::measure::Ends;
use super::spans;
use super::work::{Recorded, Verdict};
use crate::delivery::Settlement;
use crate::telemetry::Counter;

/// Settles each delivery at the broker, and reports to the dispatcher what follows for its key and lane.
pub(crate) fn settle<R>(context: &Context<R>, recorded: Vec<Recorded>) {
    if recorded.is_empty() {
        return;
    }
    let mut ends = context.measurer.ends();
    let reports = recorded.into_iter().map(|recorded| settle_one(context, recorded, &mut ends)).collect();
    drop(ends);
    context.send(Event::Settled(reports));
}

/// Settles one delivery at the broker, unless it is to be tried again.
pub(super) fn settle_one<R>(
    context: &Context<R>,
    Recorded { mut work, verdict }: Recorded,
    ends: &mut Ends<'_>,
) -> Report {
    let (key, fingerprint, generation) = (work.key(), work.fingerprint, work.generation);
    let (lane, footprint, turn) = (work.lane, work.footprint(), work.turn);
    let is_unrecorded = work.is_unrecorded;
    spans::note_end(&work, verdict);
    let trace = context.measurer.trace_context(work.receipt.span());
    let replied = work.owed.take_if(|owed| owed.is_done && owed.is_kept);
    let again = match verdict {
        Verdict::Ack(counter) => {
            context.count(counter, 1);
            ends.add(&work.message, counter);
            work.receipt.settle(Settlement::Ack);
            None
        }
        Verdict::Reject => {
            context.count(Counter::Rejected, 1);
            ends.add(&work.message, Counter::Rejected);
            work.receipt.settle(Settlement::Reject);
            None
        }
        Verdict::GiveBack { after } => {
            context.count(Counter::GivenBack, 1);
            ends.add(&work.message, Counter::GivenBack);
            // A handler may ask for any delay, and no clock can add the longest.
            work.receipt.settle(Settlement::Retry { after: after.min(LONGEST) });
            None
        }
        Verdict::Abandon => {
            context.count(Counter::GivenBack, 1);
            ends.add(&work.message, Counter::GivenBack);
            drop(work.receipt);
            None
        }
        Verdict::Again { .. } | Verdict::Parked { .. } | Verdict::StoreDown => Some(work),
    };
    Report {
        key,
        fingerprint,
        generation,
        lane,
        footprint,
        turn,
        verdict,
        again,
        is_unrecorded,
        trace,
        replied,
    }
}
