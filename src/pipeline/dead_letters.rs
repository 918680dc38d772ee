//! Dead-letters messages that failed for good, or parks them in their source.

use std::time::Duration;

use super::config::OnLetterRefused;
use super::context::Context;
use super::runner::Runner;
use super::work::{Recorded, Verdict, Work};
use crate::coalesce::bounded;
use crate::dead_letter::{DeadLetters, Extent, FailureReport};
use crate::error::{Error, ErrorKind};
use crate::failpoints::{self, Step};
use crate::store::{Burial, BuryRequest, Lease, Reason};
use crate::telemetry::{Counter, LetterSighting};

/// A message that failed for good.
pub(super) struct Letter {
    pub(super) work: Work,
    pub(super) lease: Option<Lease>,
    pub(super) why: FailureReport,
}

/// A letter that its destination has confirmed, or that a policy drops.
struct SentLetter {
    letter: Letter,
    /// The id that it was published with.
    id: String,
    /// How its delivery is counted.
    counter: Counter,
}

/// After so many publishes that failed, the message no longer holds up its lane, and is tried again at the longest delay.
const LETTER_TRIES: u32 = 10;

/// The known facts about a message for which no claim was held.
pub(super) fn report_without_claim(reason: Reason, error: String, work: &Work) -> FailureReport {
    FailureReport {
        reason,
        error,
        attempts: work.unprotected_failures,
        lost: 0,
        generation: work.generation,
        first_age: Duration::ZERO,
        again: work.again,
    }
}

/// Keeps a message in its source that failed for good.
pub(super) fn park<R>(context: &Context<R>, work: &mut Work, error: &str) {
    if !work.parked {
        work.parked = true;
        context.count(Counter::Parked, 1);
        tracing::error!(
            scope = %context.scope, key = work.log_key(), origin = work.message.origin(),
            position = work.log_position(), message_id = work.log_id(), error,
            "message failed for good and is parked in its source: fix the cause, or configure a dead-letter destination"
        );
    }
}

/// Publishes dead letters, confirmed, then marks their keys dead; only then are they acked. A crash in between repeats
/// the publish, never the handler.
pub(super) async fn dead_letter<R: Runner>(context: &Context<R>, letters: Vec<Letter>) -> Vec<Recorded> {
    let Some(target) = &context.dead_letters else {
        return letters.into_iter().map(|letter| keep(context, letter)).collect();
    };
    let (sent, mut recorded) = publish(context, target, letters).await;
    for (sent, burial) in bury(context, sent).await {
        recorded.push(match burial {
            Ok(()) => gone(context, sent),
            Err(error) => unburied(context, sent, &error),
        });
    }
    recorded
}

/// Publishes letters, those that are too large once more with fewer headers of ours.
async fn publish<R: Runner>(
    context: &Context<R>,
    target: &DeadLetters,
    letters: Vec<Letter>,
) -> (Vec<SentLetter>, Vec<Recorded>) {
    let (mut sent, mut recorded) = (Vec::new(), Vec::new());
    let mut open = letters;
    for extent in Extent::FROM_ALL_TO_FEW {
        let batch: Vec<_> = open
            .iter()
            .map(|Letter { work, why, .. }| {
                target.letter(
                    &context.scope,
                    work.key(),
                    &work.message,
                    why,
                    extent,
                    &context.config.own_headers,
                )
            })
            .collect();
        failpoints::hit(Step::LetterSent);
        let call = target.publisher().publish(&batch);
        let answers =
            bounded(context.config.publish_timeout, "publish dead letters", batch.len(), call).await;
        failpoints::hit(Step::LetterConfirmed);
        let mut too_large = Vec::new();
        let ids = batch.into_iter().map(|outgoing| outgoing.own_id);
        for ((letter, answer), id) in open.into_iter().zip(answers).zip(ids) {
            match answer {
                Ok(()) => sent.push(SentLetter { letter, id, counter: Counter::DeadLettered }),
                Err(error) if error.kind() != ErrorKind::TooLarge => {
                    recorded.push(not_confirmed(context, letter, &error));
                }
                Err(_) if extent != Extent::Needed => too_large.push(letter),
                Err(error) => match context.config.policies.on_letter_refused {
                    OnLetterRefused::Park => recorded.push(refused(context, letter, &error)),
                    OnLetterRefused::Drop => {
                        let letter = dropped(context, letter, &error);
                        sent.push(SentLetter { letter, id, counter: Counter::LettersDropped });
                    }
                },
            }
        }
        open = too_large;
        if open.is_empty() {
            break;
        }
    }
    (sent, recorded)
}

/// Marks the keys of letters dead. Only an answer about the record ends the repeating; see [`Shared::until_known`].
async fn bury<R: Runner>(
    context: &Context<R>,
    sent: Vec<SentLetter>,
) -> Vec<(SentLetter, Result<(), Error>)> {
    let ttl = context.config.ttl;
    let leases = sent.iter().filter_map(|sent| sent.letter.lease);
    let requests: Vec<_> = leases.map(|lease| BuryRequest { lease, ttl }).collect();
    let mut burials = Vec::new();
    if !requests.is_empty() {
        burials = context
            .until_known(&requests, |batch| {
                Box::pin(async move {
                    let call = context.store.bury(&context.scope, &batch);
                    context.store_call("mark keys dead", batch.len(), call).await
                })
            })
            .await;
    }
    failpoints::hit(Step::Buried);
    let mut burials = burials.into_iter();
    let answer = |sent: SentLetter| {
        let burial = sent.letter.lease.and_then(|_| burials.next()).unwrap_or(Ok(Burial::Dead));
        (sent, burial.map(|_| ()))
    };
    sent.into_iter().map(answer).collect()
}

fn gone<R>(context: &Context<R>, SentLetter { letter, id, counter }: SentLetter) -> Recorded {
    let Letter { work, why, .. } = letter;
    if counter == Counter::DeadLettered {
        let sighting = LetterSighting::new(&id, work.key(), why.reason, work.message.origin());
        context.measurer.dead_lettered(&sighting, why.attempts);
        let (scope, key, reason, error) = (&context.scope, work.log_key(), why.reason, &why.error);
        let (origin, position, message_id) = (work.message.origin(), work.log_position(), work.log_id());
        match context.log.letters.allow(&format!("{reason} {error}")) {
            Some(left_out) => tracing::warn!(
                %scope, key, origin, position, message_id, %reason, attempts = why.attempts, error, left_out,
                "message dead-lettered"
            ),
            None => {
                tracing::debug!(%scope, key, origin, position, message_id, %reason, "message dead-lettered")
            }
        }
    }
    Recorded { work, verdict: Verdict::Ack(counter) }
}

/// The letter is confirmed and its key is not known to be dead. When the drain deadline has passed, the confirm alone allows
/// the ack: a redrive of the letter reopens its key, and a copy of the message is dead-lettered again. Otherwise the record
/// cannot be read, and its message is held until that is repaired.
fn unburied<R>(context: &Context<R>, sent: SentLetter, error: &Error) -> Recorded {
    if context.giving_up.is_cancelled() {
        return gone(context, sent);
    }
    let work = sent.letter.work;
    tracing::error!(
        scope = %context.scope, key = work.log_key(), origin = work.message.origin(),
        position = work.log_position(), message_id = work.log_id(), ?error,
        "message dead-lettered, but its key could not be marked dead; message held"
    );
    Recorded { work, verdict: Verdict::Again { after: context.config.retry.backoff.max } }
}

/// There is nowhere to send it: it stays in the source.
fn keep<R>(context: &Context<R>, Letter { mut work, why, .. }: Letter) -> Recorded {
    park(context, &mut work, &why.error);
    let after = context.config.retry.backoff.max;
    Recorded { work, verdict: Verdict::Again { after } }
}

/// The destination did not confirm: the publish is repeated after a growing pause, and after many failures the message no
/// longer holds up its lane.
///
/// The next try claims under the same token: while the lease lives, it recognises its terminal failure at once.
fn not_confirmed<R>(context: &Context<R>, mut letter: Letter, error: &Error) -> Recorded {
    context.count(Counter::DeadLetterErrors, 1);
    let work = &mut letter.work;
    work.letter_failures = work.letter_failures.saturating_add(1);
    if work.letter_failures >= LETTER_TRIES {
        return refused(context, letter, error);
    }
    let (scope, key, origin) = (&context.scope, work.log_key(), work.message.origin());
    match context.log.letters.allow(&error.to_string()) {
        Some(left_out) => tracing::warn!(
            %scope, key, origin, position = work.log_position(), message_id = work.log_id(), ?error, left_out,
            "dead letter not confirmed; message held, retrying the publish"
        ),
        None => tracing::debug!(%scope, key, ?error, "dead letter not confirmed; retrying"),
    }
    let failures = work.letter_failures - 1;
    let after = context.pause(Duration::from_millis(200), failures, context.config.retry.backoff.max);
    work.owner = letter.lease.map(|lease| lease.owner);
    Recorded { work: letter.work, verdict: Verdict::Again { after } }
}

/// The destination cannot take the letter, or has failed to for long: its message stays in the source, others go on, and the
/// publish is tried again at the longest delay.
fn refused<R>(context: &Context<R>, letter: Letter, error: &Error) -> Recorded {
    let Letter { mut work, lease, why } = letter;
    let too_large = error.kind() == ErrorKind::TooLarge;
    if !work.parked {
        work.parked = true;
        context.count(Counter::Parked, 1);
        context.count(Counter::LettersRefused, 1);
        if let Some(left_out) = context.log.letters.allow(&format!("refused {error}")) {
            tracing::error!(
                scope = %context.scope, key = work.log_key(), origin = work.message.origin(),
                position = work.log_position(), message_id = work.log_id(), reason = %why.reason,
                payload_bytes = work.message.payload().len(), too_large, ?error, left_out,
                "dead letter refused; message parked in its source, others proceed: raise the limit of the \
                 dead-letter destination, or repair it"
            );
        }
    }
    work.owner = lease.map(|lease| lease.owner);
    Recorded { work, verdict: Verdict::Parked { after: context.config.retry.backoff.max } }
}

fn dropped<R>(context: &Context<R>, letter: Letter, error: &Error) -> Letter {
    context.count(Counter::LettersRefused, 1);
    let work = &letter.work;
    tracing::error!(
        scope = %context.scope, key = work.log_key(), origin = work.message.origin(),
        position = work.log_position(), message_id = work.log_id(), reason = %letter.why.reason,
        payload_bytes = work.message.payload().len(), ?error,
        "message dropped: its dead letter exceeds the limit of the destination, and on_letter_refused says drop"
    );
    letter
}
