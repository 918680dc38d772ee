//! What becomes of messages that failed for good: confirmed dead letters, or parked in their source.

use std::time::Duration;

use super::gather::bounded;
use super::runner::Runner;
use super::shared::Shared;
use super::work::{Recorded, Verdict, Work};
use crate::dead_letter::Obituary;
use crate::failpoints::{self, Step};
use crate::store::{BuryRequest, Lease, Reason};
use crate::telemetry::Counter;

/// A message that failed for good.
pub(super) struct Letter {
    pub(super) work: Work,
    pub(super) lease: Option<Lease>,
    pub(super) why: Obituary,
}

/// What is known of a message that no claim was held for.
pub(super) fn obituary_without_claim(reason: Reason, error: String, work: &Work) -> Obituary {
    Obituary {
        reason,
        error,
        attempts: work.unprotected_failures,
        lost: 0,
        generation: work.generation,
        first_age: Duration::ZERO,
    }
}

/// Keeps a message in its source that failed for good.
pub(super) fn park<R>(shared: &Shared<R>, work: &mut Work, error: &str) {
    if !work.parked {
        work.parked = true;
        shared.count(Counter::Parked, 1);
        tracing::error!(
            key = ?work.key(), delivery = ?work.message, error,
            "a message failed for good and is parked in its source: mend the cause, or configure a dead-letter destination"
        );
    }
}

/// Publishes dead letters, confirmed, then marks their keys dead; only then are they acked. A crash in between repeats
/// the publish, never the handler.
pub(super) async fn dead_letter<R: Runner>(shared: &Shared<R>, letters: Vec<Letter>) -> Vec<Recorded> {
    let Some(target) = &shared.dead_letters else {
        return letters.into_iter().map(|letter| keep(shared, letter)).collect();
    };
    let batch: Vec<_> = letters
        .iter()
        .map(|letter| target.letter(&shared.scope, letter.work.key(), &letter.work.message, &letter.why))
        .collect();
    failpoints::hit(Step::LetterSent);
    let published = bounded(
        shared.config.publish_timeout,
        "publish dead letters",
        batch.len(),
        target.publisher().publish(&batch),
    )
    .await;
    failpoints::hit(Step::LetterConfirmed);

    let mut recorded = Vec::new();
    let mut buried = Vec::new();
    for (letter, published) in letters.into_iter().zip(published) {
        match published {
            Ok(()) => buried.push(letter),
            Err(error) => {
                shared.count(Counter::DeadLetterErrors, 1);
                tracing::warn!(?error, key = ?letter.work.key(), "a dead letter was not confirmed; its message is held and the publish repeated");
                recorded.push(hold_letter(shared, letter));
            }
        }
    }
    let requests: Vec<_> = buried
        .iter()
        .filter_map(|letter| letter.lease.map(|lease| BuryRequest { lease, ttl: shared.config.ttl }))
        .collect();
    if !requests.is_empty() {
        // Whatever the answer, the letter is confirmed: that alone allows the ack.
        shared
            .until_known(requests, |batch| {
                Box::pin(async move {
                    let call = shared.store.bury(&shared.scope, &batch);
                    shared.store_call("mark keys dead", batch.len(), call).await
                })
            })
            .await;
    }
    failpoints::hit(Step::Buried);
    for Letter { work, why, .. } in buried {
        tracing::warn!(
            key = ?work.key(), reason = %why.reason, attempts = why.attempts, error = why.error, "a message was dead-lettered"
        );
        recorded.push(Recorded { work, verdict: Verdict::Ack(Counter::DeadLettered) });
    }
    recorded
}

/// There is nowhere to send it: it stays in the source.
fn keep<R>(shared: &Shared<R>, Letter { mut work, why, .. }: Letter) -> Recorded {
    park(shared, &mut work, &why.error);
    let after = shared.config.retry.backoff.max;
    Recorded { work, verdict: Verdict::Again { after } }
}

/// The next try claims under the same token: while the lease lives, it recognises its terminal failure at once.
fn hold_letter<R>(shared: &Shared<R>, Letter { mut work, lease, .. }: Letter) -> Recorded {
    work.owner = lease.map(|lease| lease.owner);
    let after = shared.pause(Duration::from_millis(200), work.holds, shared.config.retry.backoff.max);
    work.holds += 1;
    Recorded { work, verdict: Verdict::Again { after } }
}
