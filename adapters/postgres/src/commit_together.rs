//! Commits many effects in one transaction: [`PgStore::commit_together`].

use onceward::store::{Commit, CompleteRequest, SharedCommit, TransactionalStore};
use onceward::{Error, Handled, HandlerError, Scope};

use crate::connection::PgConn;
use crate::store::PgStore;
use crate::transaction::PgTx;

/// The outcome of one effect of [`PgStore::commit_together`].
#[derive(Debug)]
pub enum EffectOutcome {
    /// Effect and completion are durable.
    Committed,
    /// It failed and was rolled back; the others were not.
    Failed(HandlerError),
    /// Its claim was no longer held; it was rolled back.
    Fenced,
    /// Unknown whether it was committed with its completion; the next claim of its key shows it.
    Unknown(Error),
}

impl PgStore {
    /// Runs an effect for each of `requests` in one transaction, and commits them with their completions: one disk sync instead
    /// of many. Each runs in a savepoint, so that a failed one does not affect the others. If they cannot be committed together
    /// (a lost claim, a deferred constraint, a conflict with another transaction) each is run again in its own transaction: an
    /// effect must be confined to the database.
    ///
    /// The claims must be held, and their keys distinct. The caller renews them during the call, as for single handlers.
    ///
    /// ```no_run
    /// # use onceward::{Scope, store::CompleteRequest};
    /// # use onceward_postgres::{PgStore, PgTx};
    /// # async fn example(store: PgStore, scope: Scope, requests: Vec<CompleteRequest>, payloads: Vec<String>) {
    /// let charged = store.commit_together(&scope, &requests, async |n, mut tx: PgTx<'_>| {
    ///     sqlx::query("INSERT INTO charges (payload) VALUES ($1)").bind(&payloads[n]).execute(&mut *tx).await?;
    ///     Ok(())
    /// });
    /// # let _ = charged.await;
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error`] if no transaction can be opened; no effect was run then.
    ///
    /// # Cancel safety
    /// A dropped call rolls back the open transaction; effects without a reported outcome may be committed.
    pub async fn commit_together(
        &self,
        scope: &Scope,
        requests: &[CompleteRequest],
        mut effect: impl AsyncFnMut(usize, PgTx<'_>) -> Handled,
    ) -> Result<Vec<EffectOutcome>, Error> {
        let mut open = self.begin_shared().await?;
        let outcomes = match self.run_all(&mut open, requests.len(), &mut effect).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                // Dropping closes the connection, which rolls the transaction back.
                tracing::debug!(%error, "shared transaction lost; effects run one by one");
                drop(open);
                return self.commit_one_by_one(scope, requests, effect).await;
            }
        };
        let kept = requests.iter().zip(&outcomes).filter(|(_, failed)| failed.is_none());
        let kept: Vec<_> = kept.map(|(request, _)| request.clone()).collect();
        let unknown = match self.commit_shared(open, scope, &kept).await {
            Ok(SharedCommit::Committed) => None,
            Err(error) if error.is_retryable() => Some(error),
            Ok(SharedCommit::RolledBack) | Err(_) => {
                return self.commit_one_by_one(scope, requests, effect).await;
            }
        };
        let outcome = |failed: Option<HandlerError>| match (failed, &unknown) {
            (Some(error), _) => EffectOutcome::Failed(error),
            (None, None) => EffectOutcome::Committed,
            (None, Some(error)) => EffectOutcome::Unknown(error.clone()),
        };
        Ok(outcomes.into_iter().map(outcome).collect())
    }

    /// Runs all effects, and returns the failure of each. An error: the transaction is lost.
    async fn run_all(
        &self,
        open: &mut PgConn,
        count: usize,
        effect: &mut impl AsyncFnMut(usize, PgTx<'_>) -> Handled,
    ) -> Result<Vec<Option<HandlerError>>, Error> {
        let mut outcomes = Vec::with_capacity(count);
        for n in 0..count {
            let mut handled = effect(n, self.lend(open)).await;
            // The commit keeps the last one.
            if handled.is_ok() && n + 1 < count {
                match self.keep(open).await {
                    Err(error) if error.is_retryable() => return Err(error),
                    kept => handled = kept.map_err(HandlerError::from),
                }
            }
            if handled.is_err() {
                self.undo(open).await?;
            }
            outcomes.push(handled.err());
        }
        Ok(outcomes)
    }

    /// Runs and commits each effect in its own transaction.
    async fn commit_one_by_one(
        &self,
        scope: &Scope,
        requests: &[CompleteRequest],
        mut effect: impl AsyncFnMut(usize, PgTx<'_>) -> Handled,
    ) -> Result<Vec<EffectOutcome>, Error> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for (n, request) in requests.iter().enumerate() {
            let mut open = match self.begin().await {
                Ok(open) => open,
                Err(error) if outcomes.is_empty() => return Err(error),
                Err(error) => {
                    outcomes.push(EffectOutcome::Failed(error.into()));
                    continue;
                }
            };
            if let Err(error) = effect(n, self.lend(&mut open)).await {
                self.rollback(open).await;
                outcomes.push(EffectOutcome::Failed(error));
                continue;
            }
            outcomes.push(match self.commit(open, scope, request).await {
                Ok(Commit::Committed) => EffectOutcome::Committed,
                Ok(Commit::Fenced) => EffectOutcome::Fenced,
                Err(error) if error.is_retryable() => EffectOutcome::Unknown(error),
                Err(error) => EffectOutcome::Failed(error.into()),
            });
        }
        Ok(outcomes)
    }
}
