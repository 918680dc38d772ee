//! Claims and completions: what most need in one statement, the rest under row locks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use onceward::store::transition::Record;
use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion};
use onceward::{Error, Key, Scope};

use crate::fast;
use crate::held::Held;
use crate::link::{Batch, Link, SHORT_WAIT};

type Claims = Vec<Result<Claim, Error>>;

/// The answer for a key whose row another transaction holds: it may be free at any moment.
const HELD: Claim = Claim::InProgress { retry_in: Duration::from_millis(250) };

/// Answers in the order of `batch`.
pub(crate) async fn claim(
    link: &Link,
    held: &Arc<Held>,
    scope: &Scope,
    terms: &ClaimTerms,
    batch: &[ClaimRequest],
) -> Claims {
    if batch.is_empty() {
        return Vec::new();
    }
    let (suspects, free): (Vec<_>, Vec<_>) =
        batch.iter().copied().partition(|request| held.recently(&request.key));
    let (free, suspects) = tokio::join!(
        claim_free(link, held, scope, terms, &free),
        claim_known(link, held, scope, terms, suspects, Some(SHORT_WAIT)),
    );
    let mut answers: HashMap<Key, _> = free.into_iter().chain(suspects).collect();
    batch.iter().filter_map(|request| answers.remove(&request.key)).collect()
}

async fn claim_free(
    link: &Link,
    held: &Arc<Held>,
    scope: &Scope,
    terms: &ClaimTerms,
    batch: &[ClaimRequest],
) -> Vec<(Key, Result<Claim, Error>)> {
    if batch.is_empty() {
        return Vec::new();
    }
    let mut won = match fast::claim(link, scope, terms, batch).await {
        Ok(won) => won,
        Err(error) => return batch.iter().map(|request| (request.key, Err(error.replicate()))).collect(),
    };
    let known = batch.iter().filter(|request| !won.contains_key(&request.key)).copied().collect();
    let mut answers = claim_known(link, held, scope, terms, known, None).await;
    answers.extend(won.drain().map(|(key, claim)| (key, Ok(claim))));
    answers
}

/// Under row locks. `wait`: for how long a lock is waited for, if not for as long as usual.
async fn claim_known(
    link: &Link,
    held: &Arc<Held>,
    scope: &Scope,
    terms: &ClaimTerms,
    batch: Vec<ClaimRequest>,
    wait: Option<Duration>,
) -> Vec<(Key, Result<Claim, Error>)> {
    let keys: Vec<_> = batch.iter().map(|request| request.key).collect();
    let (terms, held) = (*terms, Arc::clone(held));
    let long = Batch {
        items: batch,
        key: |request: &ClaimRequest| request.key,
        decide: Arc::new(move |record: &mut Record, at, request: &ClaimRequest| {
            record.claim(at, &terms, request)
        }),
        held: Some(Box::new(move |key| {
            held.note(key);
            HELD
        })),
        wait,
        occupy: true,
        repeatable: true,
    };
    keys.into_iter().zip(link.call(scope, long).await).collect()
}

/// Answers in the order of `batch`.
pub(crate) async fn complete(
    link: &Link,
    scope: &Scope,
    batch: &[CompleteRequest],
) -> Vec<Result<Completion, Error>> {
    if batch.is_empty() {
        return Vec::new();
    }
    let mut done = match fast::complete(link, scope, batch).await {
        Ok(done) => done,
        Err(error) => return batch.iter().map(|_| Err(error.replicate())).collect(),
    };
    let others: Vec<_> =
        batch.iter().filter(|request| !done.contains_key(&request.lease.key)).cloned().collect();
    let long = Batch {
        items: others,
        key: |request: &CompleteRequest| request.lease.key,
        decide: Arc::new(Record::complete),
        held: None,
        wait: None,
        occupy: true,
        repeatable: true,
    };
    let mut rest = link.call(scope, long).await.into_iter();
    let answer = |request: &CompleteRequest| done.remove(&request.lease.key).map(Ok).or_else(|| rest.next());
    batch.iter().filter_map(answer).collect()
}
