//! Settles deliveries whose record is durable, and reports them to the dispatcher.

use super::context::Context;
use super::event::{Event, Report};
use super::limits::LONGEST;
use super::work::{Recorded, Verdict};
use crate::delivery::Settlement;
use crate::telemetry::Counter;

/// Settles each delivery at the broker, and reports to the dispatcher what follows for its key and lane.
pub(crate) fn settle<R>(context: &Context<R>, recorded: Vec<Recorded>) {
    if recorded.is_empty() {
        return;
    }
    let reports = recorded.into_iter().map(|recorded| settle_one(context, recorded)).collect();
    context.send(Event::Settled(reports));
}

/// Settles one delivery at the broker, unless it is to be tried again.
pub(super) fn settle_one<R>(context: &Context<R>, Recorded { work, verdict }: Recorded) -> Report {
    let (key, fingerprint, generation) = (work.key(), work.fingerprint, work.generation);
    let (lane, size) = (work.lane, work.size);
    let (epoch, turn) = (work.receipt.tag().epoch, work.turn);
    let again = match verdict {
        Verdict::Ack(counter) => {
            context.count(counter, 1);
            work.receipt.settle(Settlement::Ack);
            None
        }
        Verdict::Reject => {
            context.count(Counter::Rejected, 1);
            work.receipt.settle(Settlement::Reject);
            None
        }
        Verdict::GiveBack { after } => {
            context.count(Counter::GivenBack, 1);
            // A handler may ask for any delay, and no clock can add the longest.
            work.receipt.settle(Settlement::Retry { after: after.min(LONGEST) });
            None
        }
        Verdict::Abandon => {
            context.count(Counter::GivenBack, 1);
            drop(work.receipt);
            None
        }
        Verdict::Again { .. } | Verdict::Parked { .. } | Verdict::StoreDown => Some(work),
    };
    Report { key, fingerprint, generation, lane, epoch, size, turn, verdict, again }
}
