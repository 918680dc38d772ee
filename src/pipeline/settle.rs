//! Settles deliveries whose record is durable, and reports them to the dispatcher.

use super::context::Context;
use super::event::{Event, Report};
use super::limits::LONGEST;
use super::measure::{Ends, Measurer};
use super::receipt::SettleBatch;
use super::spans;
use super::work::{Recorded, Verdict};
use crate::delivery::Settlement;
use crate::telemetry::Counter;

/// Settlements of deliveries that are recorded together. When it is dropped they are counted, and then settled.
pub(super) struct Settling<'c> {
    measurer: &'c Measurer,
    ends: Ends<'c>,
    batch: SettleBatch,
}

impl<'c> Settling<'c> {
    /// For about so many deliveries.
    pub(super) fn new<R>(context: &'c Context<R>, count: usize) -> Self {
        Self { measurer: &context.measurer, ends: context.ends(), batch: SettleBatch::with_capacity(count) }
    }
}

/// Settles each delivery at the broker, and reports to the dispatcher what follows for its key and lane.
pub(crate) fn settle<R>(context: &Context<R>, recorded: Vec<Recorded>) {
    if recorded.is_empty() {
        return;
    }
    let mut settling = Settling::new(context, recorded.len());
    let reports = recorded.into_iter().map(|recorded| settle_one(recorded, &mut settling)).collect();
    drop(settling);
    context.send(Event::Settled(reports));
}

/// Settles one delivery at the broker, unless it is to be tried again.
pub(super) fn settle_one(
    Recorded { mut work, verdict }: Recorded,
    Settling { measurer, ends, batch }: &mut Settling<'_>,
) -> Report {
    let (key, fingerprint, generation) = (work.key(), work.fingerprint, work.generation);
    let (lane, footprint, turn) = (work.lane, work.footprint(), work.turn);
    let is_unrecorded = work.is_unrecorded;
    spans::note_end(&work, verdict);
    let trace = measurer.trace_context(work.receipt.span());
    let replied = work.owed.take_if(|owed| owed.is_done && owed.is_kept);
    let again = match verdict {
        Verdict::Ack(counter) => {
            ends.add(&work.message, counter);
            work.receipt.settle_in(batch, Settlement::Ack);
            None
        }
        Verdict::Reject => {
            ends.add(&work.message, Counter::Rejected);
            work.receipt.settle_in(batch, Settlement::Reject);
            None
        }
        Verdict::GiveBack { after } => {
            ends.add(&work.message, Counter::GivenBack);
            // A handler may ask for any delay, and no clock can add the longest.
            work.receipt.settle_in(batch, Settlement::Retry { after: after.min(LONGEST) });
            None
        }
        Verdict::Abandon => {
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
