//! Claims and completions: what most need in one statement, the rest under row locks.

pub(crate) mod contended;
pub(crate) mod row_locks;
pub(crate) mod single_statement;
pub(crate) mod unanswered;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use onceward::store::transition::Record;
use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion};
use onceward::{Error, Key, Scope};

use crate::claim::contended::ContendedKeys;
use crate::claim::row_locks::{LockPolicy, LockedBatch, lock_timeout_error};
use crate::claim::unanswered::UnansweredClaims;
use crate::session::Sessions;

type Claims = Vec<Result<Claim, Error>>;

/// The answer for a key whose row another transaction holds: it may be free at any moment.
const CONTENDED: Claim = Claim::InProgress { retry_in: Duration::from_millis(250) };

/// Answers in the order of `batch`.
pub(crate) async fn claim(
    sessions: &Sessions,
    held: &Arc<ContendedKeys>,
    doubts: &UnansweredClaims,
    scope: &Scope,
    terms: &ClaimTerms,
    batch: &[ClaimRequest],
) -> Claims {
    if batch.is_empty() {
        return Vec::new();
    }
    let unanswered = batch.iter().filter(|request| doubts.sent(request.owner)).map(|request| request.key);
    let call = ClaimCall {
        sessions,
        held,
        lost: sessions.lost(),
        unanswered: Arc::new(unanswered.collect()),
        scope,
        terms,
    };
    let (suspects, free): (Vec<_>, Vec<_>) =
        batch.iter().copied().partition(|request| held.recently(&request.key));
    let (free, suspects) = tokio::join!(call.free(&free), call.known(suspects, LockPolicy::Skip));
    let mut answers: HashMap<Key, _> = free.into_iter().chain(suspects).collect();
    for request in batch {
        if answers
            .get(&request.key)
            .is_some_and(|answer| !matches!(answer, Err(error) if error.is_retryable()))
        {
            doubts.answered(&request.owner);
        }
    }
    batch.iter().filter_map(|request| answers.remove(&request.key)).collect()
}

/// A batch of claims under way.
struct ClaimCall<'c> {
    sessions: &'c Sessions,
    held: &'c Arc<ContendedKeys>,
    /// Connections lost before.
    lost: u64,
    /// Keys whose claim by the same owner token was sent before and is not known to be answered.
    unanswered: Arc<HashSet<Key>>,
    scope: &'c Scope,
    terms: &'c ClaimTerms,
}

impl ClaimCall<'_> {
    /// Keys of which nothing is known.
    async fn free(&self, batch: &[ClaimRequest]) -> Vec<(Key, Result<Claim, Error>)> {
        if batch.is_empty() {
            return Vec::new();
        }
        let (mut won, first) =
            match single_statement::claim(self.sessions, self.scope, self.terms, batch).await {
                Ok(Some(won)) => (won, LockPolicy::Wait),
                // The holder has been waited for.
                Ok(None) => (HashMap::new(), LockPolicy::Skip),
                Err(error) => {
                    return batch.iter().map(|request| (request.key, Err(error.clone()))).collect();
                }
            };
        let known = batch.iter().filter(|request| !won.contains_key(&request.key)).copied().collect();
        let mut answers = self.known(known, first).await;
        answers.extend(won.drain().map(|(key, claim)| (key, Ok(claim))));
        answers
    }

    /// Under row locks.
    async fn known(&self, batch: Vec<ClaimRequest>, first: LockPolicy) -> Vec<(Key, Result<Claim, Error>)> {
        let keys: Vec<_> = batch.iter().map(|request| request.key).collect();
        let (terms, held, unanswered) = (*self.terms, Arc::clone(self.held), Arc::clone(&self.unanswered));
        let (sessions, lost) = (self.sessions.clone(), self.lost);
        let long = LockedBatch {
            items: batch,
            key: |request: &ClaimRequest| request.key,
            decide: Arc::new(move |record: &mut Record, at, request: &ClaimRequest| {
                record.claim(at, &terms, request)
            }),
            held: Some(Box::new(move |key| {
                // An earlier call with the same owner token may hold the row itself: then nothing is known.
                if unanswered.contains(&key) || sessions.lost() != lost {
                    return Err(lock_timeout_error());
                }
                held.note(key);
                Ok(CONTENDED)
            })),
            first,
            occupy: true,
            repeatable: true,
        };
        keys.into_iter().zip(self.sessions.call(self.scope, long).await).collect()
    }
}

/// Answers in the order of `batch`.
pub(crate) async fn complete(
    sessions: &Sessions,
    scope: &Scope,
    batch: &[CompleteRequest],
) -> Vec<Result<Completion, Error>> {
    if batch.is_empty() {
        return Vec::new();
    }
    let (mut done, first) = match single_statement::complete(sessions, scope, batch).await {
        Ok(Some(done)) => (done, LockPolicy::Wait),
        Ok(None) => (HashMap::new(), LockPolicy::Skip),
        Err(error) => return batch.iter().map(|_| Err(error.clone())).collect(),
    };
    let others: Vec<_> =
        batch.iter().filter(|request| !done.contains_key(&request.lease.key)).cloned().collect();
    let long = LockedBatch {
        items: others,
        key: |request: &CompleteRequest| request.lease.key,
        decide: Arc::new(Record::complete),
        held: None,
        first,
        occupy: true,
        repeatable: true,
    };
    let mut rest = sessions.call(scope, long).await.into_iter();
    let answer = |request: &CompleteRequest| done.remove(&request.lease.key).map(Ok).or_else(|| rest.next());
    batch.iter().filter_map(answer).collect()
}
