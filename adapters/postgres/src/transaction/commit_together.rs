//! Many effects in one transaction: [`PgStore::commit_together`].

use onceward::store::{Commit, CompleteRequest, SharedCommit, TransactionalStore};
use onceward::{Error, Handled, HandlerError, Scope};

use crate::connection::PgConn;
use crate::store::PgStore;
use crate::transaction::PgTx;

/// What became of one effect of [`PgStore::commit_together`].
#[derive(Debug)]
pub enum EffectOutcome {
    /// Effect and completion are durable.
    Committed,
    /// It failed, and is rolled back; the others are not.
    Failed(HandlerError),
    /// Its claim was no longer held: it is rolled back.
    Fenced,
    /// It may or may not be committed, together with its completion: the next claim of its key tells.
    Unknown(Error),
}

impl PgStore {
    /// Runs an effect for each of `requests`, all in one transaction, and commits them with their completions: one wait for
    /// the disk instead of many. Each runs in a savepoint, so that one that fails takes no other with it. If they cannot be
    /// committed together (a claim was lost, a deferred constraint, a conflict with another transaction) each is run again
    /// in a transaction of its own: an effect must be in the database alone.
    ///
    /// The claims are held, and their keys distinct. Meanwhile they have to be renewed, as for single handlers.
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
    /// [`Error`] if no transaction can be opened: nothing has happened then.
    ///
    /// # Cancel safety
    /// A dropped call rolls back what is open; what was told of no outcome may be committed.
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
                // The connection is closed, and with that all that it did is rolled back.
                tracing::debug!(%error, "effects could not be run together");
                drop(open);
                return self.each(scope, requests, effect).await;
            }
        };
        let kept = requests.iter().zip(&outcomes).filter(|(_, failed)| failed.is_none());
        let kept: Vec<_> = kept.map(|(request, _)| request.clone()).collect();
        let of_kept = match self.commit_shared(open, scope, &kept).await {
            Ok(SharedCommit::Committed) => None,
            Err(error) if error.is_retryable() => Some(error),
            Ok(SharedCommit::RolledBack) | Err(_) => return self.each(scope, requests, effect).await,
        };
        let told = |failed: Option<HandlerError>| match (failed, &of_kept) {
            (Some(error), _) => EffectOutcome::Failed(error),
            (None, None) => EffectOutcome::Committed,
            (None, Some(error)) => EffectOutcome::Unknown(error.clone()),
        };
        Ok(outcomes.into_iter().map(told).collect())
    }

    /// The failures of those that failed. An error: the transaction is lost.
    async fn run_all(
        &self,
        open: &mut PgConn,
        count: usize,
        effect: &mut impl AsyncFnMut(usize, PgTx<'_>) -> Handled,
    ) -> Result<Vec<Option<HandlerError>>, Error> {
        let mut outcomes = Vec::with_capacity(count);
        for n in 0..count {
            let mut handled = effect(n, self.lend(open)).await;
            if handled.is_ok() {
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

    /// Each in a transaction of its own.
    async fn each(
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
