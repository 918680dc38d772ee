//! Completes keys from outside of any pipeline: claim, then complete, in batches, repeated until the outcome is known.

use std::time::Duration;

use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy, Lease, Reason};
use onceward::{Error, Key};

use super::Bench;

/// Keys in one call.
pub(super) const BATCH: usize = 256;

/// How often a call whose outcome is unknown is repeated, with the same owner tokens.
const REPEATS: u32 = 5;

/// The pause before the first repeat; it doubles.
const PAUSE: Duration = Duration::from_millis(200);

/// What became of one key.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is completed now.
    Completed,
    /// It was completed before; its record was left as it is.
    Known,
    /// A handler holds it, and may for so long. Nothing was changed.
    InProgress(Duration),
    /// Its message is dead-lettered, or is about to be. Nothing was changed.
    Dead(Option<Reason>),
    /// The store did not say.
    Failed(Error),
}

/// Completes `keys`, each to be remembered for its own time. The keys are distinct; at most [`BATCH`] of them.
pub(super) async fn complete(bench: &Bench<'_>, keys: &[(Key, Duration)]) -> Vec<Outcome> {
    let limits = bench.config.limits();
    // Whatever attempts a key has used up, this is none of its handler's.
    let terms = ClaimTerms { lease: limits.lease.get(), max_attempts: u32::MAX, ttl: limits.ttl.get() };
    let mut entropy = Entropy::system();
    let claims: Vec<_> = keys
        .iter()
        .map(|(key, _)| ClaimRequest { key: *key, owner: entropy.token(), fingerprint: None, generation: 0 })
        .collect();
    let answers =
        until_known(claims, async |batch| bench.store.store.claim(&bench.scope, &terms, batch).await).await;

    let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(keys.len());
    let mut claimed = Vec::new();
    for (index, answer) in answers.into_iter().enumerate() {
        outcomes.push(match answer {
            Ok(Claim::Claimed(won)) => {
                claimed.push((index, request(won.lease, won.generation, keys[index].1)));
                None
            }
            Ok(Claim::Completed { .. }) => Some(Outcome::Known),
            Ok(Claim::InProgress { retry_in }) => Some(Outcome::InProgress(retry_in)),
            Ok(Claim::Exhausted(exhausted)) => Some(Outcome::Dead(Some(exhausted.reason))),
            Ok(Claim::Dead { reason, .. }) => Some(Outcome::Dead(Some(reason))),
            // Without a fingerprint there is nothing to differ in.
            Ok(Claim::Mismatch) => Some(Outcome::Known),
            Err(error) => Some(Outcome::Failed(error)),
        });
    }
    let (indices, requests): (Vec<_>, Vec<_>) = claimed.into_iter().unzip();
    let written =
        until_known(requests, async |batch| bench.store.store.complete(&bench.scope, batch).await).await;
    for (index, completion) in indices.into_iter().zip(written) {
        outcomes[index] = Some(match completion {
            Ok(Completion::Completed | Completion::Repeated | Completion::Inserted) => Outcome::Completed,
            Ok(Completion::DoneByAnother) => Outcome::Known,
            Ok(Completion::HeldByAnother) => Outcome::InProgress(limits.lease.get()),
            Err(error) => Outcome::Failed(error),
        });
    }
    outcomes.into_iter().flatten().collect()
}

fn request(lease: Lease, generation: u32, ttl: Duration) -> CompleteRequest {
    CompleteRequest { lease, result: None, fingerprint: None, generation, ttl }
}

/// Repeats the items whose outcome is unknown.
async fn until_known<Q, T>(
    items: Vec<Q>,
    call: impl AsyncFn(&[Q]) -> Vec<Result<T, Error>>,
) -> Vec<Result<T, Error>> {
    let mut answers: Vec<Option<Result<T, Error>>> = items.iter().map(|_| None).collect();
    let mut open: Vec<(usize, Q)> = items.into_iter().enumerate().collect();
    for repeat in 0..=REPEATS {
        if open.is_empty() {
            break;
        }
        if repeat > 0 {
            tokio::time::sleep(PAUSE * (1 << (repeat - 1))).await;
        }
        let (indices, batch): (Vec<_>, Vec<_>) = open.into_iter().unzip();
        let results = call(&batch).await;
        open = Vec::new();
        for ((index, item), result) in indices.into_iter().zip(batch).zip(results) {
            if matches!(&result, Err(error) if error.is_retryable()) {
                open.push((index, item));
            }
            answers[index] = Some(result);
        }
    }
    answers.into_iter().flatten().collect()
}
