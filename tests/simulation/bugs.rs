//! Bugs planted in the parts around the pipeline, to show that the simulation finds such things.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use onceward::adapter::StoreAdmin;
use onceward::store::{
    Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, FailRequest, Failure, Lease, RenewRequest,
    Renewal,
};
use onceward::testing::{MemoryInbox, MemoryPublisher, MemoryTransaction};
use onceward::{Error, Key, Outgoing, Publisher, Scope, Store, TransactionalStore};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The store lets a key in progress be claimed once more.
    ClaimsTwice,
    /// The broker's client acks what it receives.
    AcksOnReceive,
    /// The store compares neither owner nor fence.
    ForgetsTheFence,
    /// The store answers that a pending key is completed.
    SaysCompletedForPending,
    /// The store reports that it has completed a key, and has not.
    LosesCompletions,
    /// The store reports that it has renewed a lease, and has not.
    LosesRenewals,
    /// The store keeps the effects of failed runs in transactions that others share.
    UndoesNothing,
    /// A handler that finds a dependency unavailable blames the message.
    BlamesMessages,
    /// The broker's client does not report partitions that leave.
    HidesLeaving,
    /// The dead-letter destination confirms what it does not keep.
    ConfirmsWithoutKeeping,
    /// The store syncs no claim, whatever the handler.
    SyncsNoClaim,
}

impl Bug {
    pub(crate) const ALL: [Self; 11] = [
        Self::ClaimsTwice,
        Self::AcksOnReceive,
        Self::ForgetsTheFence,
        Self::SaysCompletedForPending,
        Self::LosesCompletions,
        Self::LosesRenewals,
        Self::UndoesNothing,
        Self::BlamesMessages,
        Self::HidesLeaving,
        Self::ConfirmsWithoutKeeping,
        Self::SyncsNoClaim,
    ];
}

/// The store, with or without a bug.
#[derive(Clone)]
pub(crate) struct Planted {
    pub(crate) inbox: MemoryInbox,
    pub(crate) bug: Option<Bug>,
    /// The last claim of each key.
    last: Arc<Mutex<HashMap<Key, Lease>>>,
}

type Answers<T> = Vec<Result<T, Error>>;

impl Planted {
    pub(crate) fn new(inbox: MemoryInbox, bug: Option<Bug>) -> Self {
        Self { inbox, bug, last: Arc::default() }
    }

    pub(crate) async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
        for_commit: bool,
    ) -> Answers<Claim> {
        let mut answers = match for_commit {
            true => self.inbox.claim_for_commit(scope, terms, batch).await,
            false => self.inbox.claim(scope, terms, batch).await,
        };
        for (request, answer) in batch.iter().zip(&mut answers) {
            if matches!(answer, Ok(Claim::InProgress { .. })) {
                match self.bug {
                    Some(Bug::ClaimsTwice) => {
                        self.inbox.forget(scope, &[request.key]).await;
                        let again = self.inbox.claim(scope, terms, &[*request]).await;
                        again.into_iter().for_each(|again| *answer = again);
                    }
                    Some(Bug::SaysCompletedForPending) => {
                        *answer = Ok(Claim::completed(None, terms.lease));
                    }
                    _ => {}
                }
            }
            if let Ok(Claim::Claimed(claimed)) = answer {
                self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(request.key, claimed.lease);
            }
        }
        answers
    }

    /// The claim that a write is taken for.
    fn taken_for(&self, lease: Lease) -> Lease {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match self.bug {
            Some(Bug::ForgetsTheFence) => last.get(&lease.key).copied().unwrap_or(lease),
            _ => lease,
        }
    }

    pub(crate) async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Answers<Completion> {
        if self.bug == Some(Bug::LosesCompletions) {
            return batch.iter().map(|_| Ok(Completion::Completed)).collect();
        }
        let taken_for = |request: &CompleteRequest| CompleteRequest {
            lease: self.taken_for(request.lease),
            ..request.clone()
        };
        self.inbox.complete(scope, &batch.iter().map(taken_for).collect::<Vec<_>>()).await
    }

    pub(crate) async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Answers<Renewal> {
        if self.bug == Some(Bug::LosesRenewals) {
            return batch.iter().map(|_| Ok(Renewal::Renewed)).collect();
        }
        let taken_for =
            |request: &RenewRequest| RenewRequest { lease: self.taken_for(request.lease), ..*request };
        self.inbox.renew(scope, &batch.iter().map(taken_for).collect::<Vec<_>>()).await
    }

    pub(crate) async fn undo(&self, conn: &mut MemoryTransaction) -> Result<(), Error> {
        if self.bug == Some(Bug::UndoesNothing) {
            return Ok(());
        }
        self.inbox.undo(conn).await
    }

    pub(crate) async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Answers<Failure> {
        let taken_for =
            |request: &FailRequest| FailRequest { lease: self.taken_for(request.lease), ..request.clone() };
        self.inbox.fail(scope, &batch.iter().map(taken_for).collect::<Vec<_>>()).await
    }
}

/// The way to the dead-letter destination, with or without a bug.
pub(crate) struct PlantedPublisher {
    pub(crate) inner: MemoryPublisher,
    pub(crate) bug: Option<Bug>,
}

#[async_trait]
impl Publisher for PlantedPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        if self.bug == Some(Bug::ConfirmsWithoutKeeping) {
            return batch.iter().map(|_| Ok(())).collect();
        }
        self.inner.publish(batch).await
    }
}
