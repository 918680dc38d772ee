//! Claims and completions: most in one statement, the rest under row locks.

pub(crate) mod contended;
mod known;
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
use crate::claim::single_statement::Durability;
use crate::claim::unanswered::UnansweredClaims;
use crate::session::Sessions;

type Claims = Vec<Result<Claim, Error>>;

/// The result for a key whose row another transaction has locked; it may be released at any moment.
const CONTENDED: Claim = Claim::InProgress { retry_in: Duration::from_millis(250) };

/// Claims keys; results are in the order of `batch`.
pub(crate) async fn claim(
    sessions: &Sessions,
    contended: &Arc<ContendedKeys>,
    unanswered_claims: &UnansweredClaims,
    scope: &Scope,
    terms: &ClaimTerms,
    batch: &[ClaimRequest],
    durability: Durability,
) -> Claims {
    if batch.is_empty() {
        return Vec::new();
    }
    let unanswered =
        batch.iter().filter(|request| unanswered_claims.note_sent(request.owner)).map(|request| request.key);
    let call = ClaimCall {
        sessions,
        contended,
        lost: sessions.lost(),
        unanswered: Arc::new(unanswered.collect()),
        scope,
        terms,
        durability,
    };
    let (suspects, free): (Vec<_>, Vec<_>) =
        batch.iter().copied().partition(|request| contended.recently(&request.key));
    let (free, suspects) = tokio::join!(call.free(&free), call.locked(suspects, LockPolicy::Skip));
    let mut answers: HashMap<Key, _> = free.into_iter().chain(suspects).collect();
    for request in batch {
        if answers
            .get(&request.key)
            .is_some_and(|answer| !matches!(answer, Err(error) if error.is_retryable()))
        {
            unanswered_claims.note_answered(&request.owner);
        }
    }
    batch.iter().filter_map(|request| answers.remove(&request.key)).collect()
}

/// A batch of claims in progress.
struct ClaimCall<'c> {
    sessions: &'c Sessions,
    contended: &'c Arc<ContendedKeys>,
    /// The number of connections lost before the call.
    lost: u64,
    /// Keys whose claim by the same owner token was sent before without a known reply.
    unanswered: Arc<HashSet<Key>>,
    scope: &'c Scope,
    terms: &'c ClaimTerms,
    durability: Durability,
}

impl ClaimCall<'_> {
    /// Claims keys that are not known to be contended.
    async fn free(&self, batch: &[ClaimRequest]) -> Vec<(Key, Result<Claim, Error>)> {
        if batch.is_empty() {
            return Vec::new();
        }
        let (mut won, lock_policy) = match single_statement::claim(
            self.sessions,
            self.scope,
            self.terms,
            batch,
            self.durability,
        )
        .await
        {
            Ok(Some(won)) => (won, LockPolicy::Wait),
            // The lock timeout has passed already.
            Ok(None) => (HashMap::new(), LockPolicy::Skip),
            Err(error) => {
                return batch.iter().map(|request| (request.key, Err(error.clone()))).collect();
            }
        };
        let mut others: Vec<_> =
            batch.iter().filter(|request| !won.contains_key(&request.key)).copied().collect();
        if lock_policy == LockPolicy::Wait && !others.is_empty() {
            match known::settled(self.sessions, self.scope, self.terms, &others).await {
                Ok(settled) => won.extend(settled),
                Err(error) => tracing::debug!(%error, "settled keys not read; their rows are locked instead"),
            }
            others.retain(|request| !won.contains_key(&request.key));
        }
        let mut answers = self.locked(others, lock_policy).await;
        answers.extend(won.drain().map(|(key, claim)| (key, Ok(claim))));
        answers
    }

    /// Claims keys under row locks.
    async fn locked(
        &self,
        batch: Vec<ClaimRequest>,
        lock_policy: LockPolicy,
    ) -> Vec<(Key, Result<Claim, Error>)> {
        let keys: Vec<_> = batch.iter().map(|request| request.key).collect();
        let (terms, contended, unanswered) =
            (*self.terms, Arc::clone(self.contended), Arc::clone(&self.unanswered));
        let (sessions, lost) = (self.sessions.clone(), self.lost);
        let locked = LockedBatch {
            items: batch,
            key: |request: &ClaimRequest| request.key,
            decide: Arc::new(move |record: &mut Record, at, request: &ClaimRequest| {
                record.claim(at, &terms, request)
            }),
            contended: Some(Box::new(move |key| {
                // An earlier call with the same owner token may hold the lock itself: then the outcome is unknown.
                if unanswered.contains(&key) || sessions.lost() != lost {
                    return Err(lock_timeout_error());
                }
                contended.note(key);
                Ok(CONTENDED)
            })),
            lock_policy,
            occupy: true,
            repeatable: true,
        };
        keys.into_iter().zip(self.sessions.call(self.scope, locked).await).collect()
    }
}

/// Completes claims; results are in the order of `batch`.
pub(crate) async fn complete(
    sessions: &Sessions,
    scope: &Scope,
    batch: &[CompleteRequest],
) -> Vec<Result<Completion, Error>> {
    if batch.is_empty() {
        return Vec::new();
    }
    let (mut done, lock_policy) = match single_statement::complete(sessions, scope, batch).await {
        Ok(Some(done)) => (done, LockPolicy::Wait),
        Ok(None) => (HashMap::new(), LockPolicy::Skip),
        Err(error) => return batch.iter().map(|_| Err(error.clone())).collect(),
    };
    let others: Vec<_> =
        batch.iter().filter(|request| !done.contains_key(&request.lease.key)).cloned().collect();
    let locked = LockedBatch {
        items: others,
        key: |request: &CompleteRequest| request.lease.key,
        decide: Arc::new(Record::complete),
        contended: None,
        lock_policy,
        occupy: true,
        repeatable: true,
    };
    let mut rest = sessions.call(scope, locked).await.into_iter();
    let answer = |request: &CompleteRequest| done.remove(&request.lease.key).map(Ok).or_else(|| rest.next());
    batch.iter().filter_map(answer).collect()
}
