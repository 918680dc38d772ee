//! Sends the results of completed messages to where the messages ask for them, after the record and before the settlement.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::context::Context;
use super::work::{InFlight, Recorded, Verdict};
use crate::coalesce::bounded;
use crate::failpoints::{self, Step};
use crate::key::Key;
use crate::replies::{Replied, Replies, Reply};
use crate::telemetry::Counter;

/// The answer that a delivery waits for before it is acked.
#[derive(Debug)]
pub(crate) struct Answer {
    key: Option<Key>,
    result: Option<Bytes>,
    /// A redelivery finds the result in the store. Otherwise its message would run again.
    is_kept: bool,
}

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
        if self.owes_reply(work) {
            let (key, result) = (work.key(), result.cloned());
            work.answer = Some(Box::new(Answer { key, result, is_kept: true }));
        }
    }

    /// As [`owe`](Self::owe), for the result of a run without a claim.
    pub(super) fn owe_unkept(&self, work: &mut InFlight, result: Option<Bytes>) {
        if self.owes_reply(work) {
            let result = result.filter(|result| result.len() <= self.config.max_result_bytes);
            work.answer = Some(Box::new(Answer { key: None, result, is_kept: false }));
        }
    }
}

/// Sends the replies that these deliveries wait for. A delivery whose reply may not have arrived is kept and asks for the result
/// again after a pause; those behind it in its lane go on.
pub(super) async fn reply<R>(
    context: &Context<R>,
    replies: &dyn Replies,
    mut recorded: Vec<Recorded>,
) -> Vec<Recorded> {
    let is_owed =
        |recorded: &Recorded| recorded.work.answer.is_some() && matches!(recorded.verdict, Verdict::Ack(_));
    let owed: Vec<_> = recorded.iter().filter(|recorded| is_owed(recorded)).filter_map(to_reply).collect();
    if owed.is_empty() {
        return recorded;
    }
    failpoints::hit(Step::ReplySent);
    let answers =
        bounded(context.config.publish_timeout, "send replies", owed.len(), replies.reply(&owed)).await;
    failpoints::hit(Step::ReplyApplied);
    drop(owed);
    for (Recorded { work, verdict }, sent) in recorded.iter_mut().filter(|each| is_owed(each)).zip(answers) {
        let is_kept = work.answer.take().is_some_and(|answer| answer.is_kept);
        let (error, is_repeated) = match sent {
            Ok(Replied::Sent) => {
                context.count(Counter::Replies, 1);
                continue;
            }
            Ok(Replied::Undeliverable(error)) => (error, false),
            Err(error) => (error, is_kept),
        };
        let counter = if is_repeated { Counter::ReplyErrors } else { Counter::RepliesUndeliverable };
        context.count(counter, 1);
        if let Some(left_out) = context.log.replies.allow(&error.to_string()) {
            tracing::warn!(
                scope = %context.scope, key = work.log_key(), origin = work.message.origin(), ?error, left_out,
                "{}",
                if is_repeated { "reply failed; it is sent again" } else { "reply undeliverable; message acked without it" }
            );
        }
        if is_repeated {
            work.is_handled |= *verdict == Verdict::Ack(Counter::Handled);
            let after = context.pause(Duration::from_millis(100), work.holds, Duration::from_secs(5));
            work.holds = work.holds.saturating_add(1);
            *verdict = Verdict::Parked { after };
        }
    }
    recorded
}

fn to_reply(recorded: &Recorded) -> Option<Reply<'_>> {
    let Answer { key, result, .. } = recorded.work.answer.as_deref()?;
    Some(Reply { message: &recorded.work.message, key: *key, result: result.as_ref() })
}
