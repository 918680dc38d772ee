//! Completes keys without a pipeline: claims and completes them in batches, and retries until the outcome is known.

use std::time::Duration;

use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy, Lease, Reason};
use onceward::{Error, Key};

use super::context::KeysContext;

/// The most keys in one call.
pub(super) const BATCH: usize = 256;

/// The most retries of a call with an unknown outcome, with the same owner tokens.
const RETRIES: u32 = 5;

/// The pause before the first retry; it doubles.
const PAUSE: Duration = Duration::from_millis(200);

/// The outcome for one key.
#[derive(Debug)]
pub(super) enum CompleteOutcome {
    /// It is completed now.
    Completed,
    /// It was completed before; its record is unchanged.
    Known,
    /// A handler holds it, for at most this long. Nothing was changed.
    InProgress(Duration),
    /// Its message is dead-lettered, or is about to be. Nothing was changed.
    Dead(Option<Reason>),
    /// The outcome is unknown.
    Failed(Error),
}

/// Completes `keys`, each with its own TTL. The keys must be distinct, at most [`BATCH`] of them.
pub(super) async fn complete(context: &KeysContext<'_>, keys: &[(Key, Duration)]) -> Vec<CompleteOutcome> {
    let limits = context.config.limits();
    // The claim is not an attempt of the handler, however many the key has used.
    let terms = ClaimTerms { lease: limits.lease.get(), max_attempts: u32::MAX, ttl: limits.ttl.get() };
    let mut entropy = Entropy::system();
    let claims: Vec<_> = keys
        .iter()
        .map(|(key, _)| ClaimRequest { key: *key, owner: entropy.token(), fingerprint: None, generation: 0 })
        .collect();
    let answers =
        until_known(claims, async |batch| context.store.store.claim(&context.scope, &terms, batch).await)
            .await;

    let mut outcomes: Vec<Option<CompleteOutcome>> = Vec::with_capacity(keys.len());
    let mut claimed = Vec::new();
    for (index, answer) in answers.into_iter().enumerate() {
        outcomes.push(match answer {
            Ok(Claim::Claimed(won)) => {
                claimed.push((index, request(won.lease, won.generation, keys[index].1)));
                None
            }
            Ok(Claim::Completed { .. }) => Some(CompleteOutcome::Known),
            Ok(Claim::InProgress { retry_in }) => Some(CompleteOutcome::InProgress(retry_in)),
            Ok(Claim::Exhausted(exhausted)) => Some(CompleteOutcome::Dead(Some(exhausted.reason))),
            Ok(Claim::Dead { reason, .. }) => Some(CompleteOutcome::Dead(Some(reason))),
            // Without a fingerprint there is no mismatch.
            Ok(Claim::Mismatch) => Some(CompleteOutcome::Known),
            Err(error) => Some(CompleteOutcome::Failed(error)),
        });
    }
    let (indices, requests): (Vec<_>, Vec<_>) = claimed.into_iter().unzip();
    let written =
        until_known(requests, async |batch| context.store.store.complete(&context.scope, batch).await).await;
    for (index, completion) in indices.into_iter().zip(written) {
        outcomes[index] = Some(match completion {
            Ok(Completion::Completed | Completion::Repeated | Completion::Inserted) => {
                CompleteOutcome::Completed
            }
            Ok(Completion::DoneByAnother) => CompleteOutcome::Known,
            Ok(Completion::HeldByAnother) => CompleteOutcome::InProgress(limits.lease.get()),
            Err(error) => CompleteOutcome::Failed(error),
        });
    }
    outcomes.into_iter().flatten().collect()
}

fn request(lease: Lease, generation: u32, ttl: Duration) -> CompleteRequest {
    CompleteRequest { generation, ..CompleteRequest::new(lease, ttl) }
}

/// Retries the items whose outcome is unknown.
async fn until_known<Q, T>(
    items: Vec<Q>,
    call: impl AsyncFn(&[Q]) -> Vec<Result<T, Error>>,
) -> Vec<Result<T, Error>> {
    let mut answers: Vec<Option<Result<T, Error>>> = items.iter().map(|_| None).collect();
    let mut open: Vec<(usize, Q)> = items.into_iter().enumerate().collect();
    for retry in 0..=RETRIES {
        if open.is_empty() {
            break;
        }
        if retry > 0 {
            tokio::time::sleep(PAUSE * (1 << (retry - 1))).await;
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
