//! Sends the results of completed messages to where the messages ask for them, after the record and before the settlement.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::context::Context;
use super::event::{Event, SequenceEnded};
use super::settle::settle;
use super::work::{InFlight, OwedReply, Recorded, Verdict};
use crate::coalesce::bounded;
use crate::error::Error;
use crate::failpoints::{self, Step};
use crate::replies::{Replied, Replies, Reply};
use crate::telemetry::Counter;

impl<R> Context<R> {
    /// Where a reply to this delivery goes; `None` if it asks for none, or no replies are sent.
    fn replies_to(&self, work: &InFlight) -> Option<&Arc<dyn Replies>> {
        self.replies.as_ref().filter(|replies| replies.wanted_by(&work.message))
    }

    /// True if the delivery asks for a reply, and replies are sent.
    pub(super) fn owes_reply(&self, work: &InFlight) -> bool {
        self.replies_to(work).is_some()
    }

    /// Notes the result that is kept under the key of the delivery, for its reply.
    pub(super) fn owe(&self, work: &mut InFlight, result: Option<&Bytes>) {
        self.owe_result(work, result, true);
    }

    /// As [`owe`](Self::owe), where the store may keep another one.
    pub(super) fn owe_own(&self, work: &mut InFlight, result: Option<&Bytes>) {
        self.owe_result(work, result, false);
    }

    fn owe_result(&self, work: &mut InFlight, result: Option<&Bytes>, is_kept: bool) {
        if self.owes_reply(work) {
            work.owed = Some(Box::new(OwedReply::new(work.key(), result.cloned(), is_kept)));
        }
    }

    /// As [`owe`](Self::owe), for the result of a run without a claim.
    pub(super) fn owe_unrecorded(&self, work: &mut InFlight, result: Option<Bytes>) {
        if self.owes_reply(work) {
            let result = result.filter(|result| result.len() <= self.config.max_result_bytes);
            work.owed = Some(Box::new(OwedReply::new(None, result, false)));
        }
    }
}

/// How long after the broker has refused a reply it is sent once more. Short, since many such messages would fill the window.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Settles deliveries, those that wait for a reply after it.
pub(super) async fn reply_and_settle<R>(
    context: &Context<R>,
    replies: &dyn Replies,
    recorded: Vec<Recorded>,
) {
    let owed = settle_unowed(context, recorded);
    settle(context, reply(context, replies, owed).await);
}

/// Settles deliveries but those that wait for a reply, which it returns. Their lanes go on meanwhile: what is to happen in order has
/// happened.
pub(super) fn settle_unowed<R>(context: &Context<R>, recorded: Vec<Recorded>) -> Vec<Recorded> {
    let (mut owed, rest): (Vec<_>, Vec<_>) = recorded.into_iter().partition(is_owed);
    settle(context, rest);
    owed.iter_mut().for_each(|each| leave_lane(context, &mut each.work));
    owed
}

/// Ends the turn of a delivery whose record is durable, so that those behind it go on.
fn leave_lane<R>(context: &Context<R>, work: &mut InFlight) {
    if let Some(lane) = work.lane.take() {
        context.send(Event::SequenceEnded(SequenceEnded::of_one(lane, work.turn.take().is_some())));
    }
}

/// Sends the replies that deliveries wait for. A delivery whose reply may not have arrived is kept, with the result, and its reply is
/// sent again after a pause.
async fn reply<R>(context: &Context<R>, replies: &dyn Replies, mut recorded: Vec<Recorded>) -> Vec<Recorded> {
    let owed: Vec<_> = recorded.iter().filter_map(to_reply).collect();
    if owed.is_empty() {
        return recorded;
    }
    failpoints::hit(Step::ReplySent);
    let limit = context.config.publish_timeout;
    let answers = tokio::select! {
        biased;
        answers = bounded(limit, "send replies", owed.len(), replies.reply(&owed)) => Some(answers),
        () = context.giving_up.cancelled() => None,
    };
    drop(owed);
    let Some(answers) = answers else {
        // The drain deadline: the next process finds the results in the store.
        recorded.iter_mut().for_each(|each| each.verdict = Verdict::Abandon);
        return recorded;
    };
    failpoints::hit(Step::ReplyApplied);
    recorded.iter_mut().zip(answers).for_each(|(each, answer)| replied(context, each, answer));
    recorded
}

fn replied<R>(context: &Context<R>, recorded: &mut Recorded, answer: Result<Replied, Error>) {
    let Recorded { work, verdict } = recorded;
    let key = work.owed.as_deref().and_then(|owed| owed.key).map(tracing::field::display);
    let is_refused = work.owed.as_deref().is_some_and(|owed| owed.is_refused);
    let end = match *verdict {
        // Another try of a delivery without a record would not end with its process: it would run again.
        Verdict::Ack(end) if !work.is_unrecorded => Some(end),
        _ => None,
    };
    match (answer, end) {
        (Ok(Replied::Sent), _) => {
            context.count(Counter::Replies, 1);
            is_done(work);
        }
        (Ok(Replied::Refused(error)), Some(end)) if !is_refused => {
            context.count(Counter::ReplyErrors, 1);
            tracing::debug!(scope = %context.scope, key, ?error, "reply refused; sending it once more");
            if let Some(owed) = &mut work.owed {
                (owed.end, owed.is_refused) = (Some(end), true);
            }
            *verdict = Verdict::Parked { after: REFUSED_PAUSE };
        }
        (Err(error), Some(end)) => {
            context.count(Counter::ReplyErrors, 1);
            if let Some(left_out) = context.log.replies.allow(&error.to_string()) {
                tracing::warn!(
                    scope = %context.scope, key, origin = work.message.origin(), ?error, left_out,
                    "reply failed; sending it again, and its message is not acked before"
                );
            }
            let after = context.pause(Duration::from_millis(100), work.holds, Duration::from_secs(5));
            if let Some(owed) = &mut work.owed {
                owed.end = Some(end);
            }
            work.holds = work.holds.saturating_add(1);
            *verdict = Verdict::Parked { after };
        }
        (Ok(Replied::Undeliverable(error) | Replied::Refused(error)) | Err(error), _) => {
            context.count(Counter::RepliesUndeliverable, 1);
            if let Some(left_out) = context.log.replies.allow(&error.to_string()) {
                tracing::warn!(
                    scope = %context.scope, key, origin = work.message.origin(), ?error, left_out,
                    "reply undeliverable; its message is acked without it"
                );
            }
            is_done(work);
        }
    }
}

/// Notes that the delivery waits for its reply no longer.
fn is_done(work: &mut InFlight) {
    if let Some(owed) = &mut work.owed {
        owed.is_done = true;
    }
}

/// True if the delivery waits for its reply.
fn is_owed(recorded: &Recorded) -> bool {
    let is_completed = matches!(recorded.verdict, Verdict::Ack(Counter::Handled | Counter::Duplicates));
    is_completed && recorded.work.owed.as_ref().is_some_and(|owed| !owed.is_done)
}

fn to_reply(recorded: &Recorded) -> Option<Reply<'_>> {
    let OwedReply { key, result, .. } = recorded.work.owed.as_deref()?;
    Some(Reply { message: &recorded.work.message, key: *key, result: result.as_ref() })
}
