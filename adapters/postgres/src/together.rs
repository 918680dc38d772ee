//! Many effects in one transaction: [`PgStore::commit_together`].

use onceward::store::transition::micros;
use onceward::store::{Commit, CompleteRequest, TransactionalStore};
use onceward::{Error, ErrorKind, Handled, HandlerError, Scope};
use sqlx::postgres::PgTransactionManager;
use sqlx::{AssertSqlSafe, PgConnection, query, raw_sql};
use sqlx_core::transaction::TransactionManager;

use crate::error::{is_conflict, is_data, store_error};
use crate::row::{self, NOW};
use crate::store::PgStore;
use crate::transaction::{IS_DURABLE, IS_OPEN, PgConn, PgTx, no_nested};

const TOGETHER: &str = "commit effects together";

/// What became of one effect of [`PgStore::commit_together`].
#[derive(Debug)]
pub enum Together {
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
    ) -> Result<Vec<Together>, Error> {
        let scope_id = self.link().scope_id(scope).await.map_err(|attempt| attempt.told(TOGETHER))?;
        let mut open = self.begin().await?;
        let outcomes = match self.run_all(&mut open, requests.len(), &mut effect).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                // The connection is gone, and with it all that it did.
                tracing::debug!(%error, "effects could not be run together");
                return self.each(scope, requests, effect).await;
            }
        };
        let done: Vec<_> = requests
            .iter()
            .zip(&outcomes)
            .filter(|(_, failed)| failed.is_none())
            .map(|(one, _)| one)
            .collect();
        let told = |outcome: Option<HandlerError>| outcome.map_or(Together::Committed, Together::Failed);
        match self.finish(open, scope_id, &done).await {
            Finished::Committed => Ok(outcomes.into_iter().map(told).collect()),
            Finished::RolledBack => self.each(scope, requests, effect).await,
            Finished::Unknown(error) => Ok(outcomes
                .into_iter()
                .map(|outcome| match outcome {
                    None => Together::Unknown(error.replicate()),
                    failed => told(failed),
                })
                .collect()),
        }
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
            simple(open.connection(), "SAVEPOINT onceward_effect").await?;
            let mut handled = effect(n, self.lend(open)).await;
            if let (Ok(()), Err(error)) = (&handled, no_nested(open.connection())) {
                handled = Err(error.into());
            }
            while PgTransactionManager::get_transaction_depth(open.connection()) > 1 {
                let undone = PgTransactionManager::rollback(open.connection()).await;
                undone.map_err(|error| store_error(TOGETHER, error))?;
            }
            let end = match handled {
                Ok(()) => "RELEASE SAVEPOINT onceward_effect",
                Err(_) => "ROLLBACK TO SAVEPOINT onceward_effect; RELEASE SAVEPOINT onceward_effect",
            };
            // A statement that failed, though the handler says that all is well, fails here.
            if let Err(error) = simple(open.connection(), end).await {
                simple(open.connection(), "ROLLBACK TO SAVEPOINT onceward_effect").await?;
                handled = Err(error.into());
            }
            outcomes.push(handled.err());
        }
        Ok(outcomes)
    }

    /// Writes the completions, fenced, as the last statement, and commits.
    async fn finish(&self, mut open: PgConn, scope: i64, done: &[&CompleteRequest]) -> Finished {
        match finish(open.connection(), &self.schema(), scope, done).await {
            Ok(count) if count == done.len() as u64 => {}
            Ok(_) => {
                self.rollback(open).await;
                return Finished::RolledBack;
            }
            // Not committed, for it was never asked to.
            Err(error) => {
                tracing::debug!(%error, "completions could not be written together");
                return Finished::RolledBack;
            }
        }
        let committed = tokio::spawn(async move { open.commit_plain().await }).await;
        match committed {
            Ok(Ok(())) => Finished::Committed,
            Ok(Err(error)) if is_conflict(&error) || is_data(&error) => Finished::RolledBack,
            Ok(Err(error)) => Finished::Unknown(store_error(TOGETHER, error)),
            Err(_) => Finished::Unknown(Error::new(
                ErrorKind::Unavailable,
                TOGETHER,
                "the runtime ended before the transaction did",
            )),
        }
    }

    /// Each in a transaction of its own.
    async fn each(
        &self,
        scope: &Scope,
        requests: &[CompleteRequest],
        mut effect: impl AsyncFnMut(usize, PgTx<'_>) -> Handled,
    ) -> Result<Vec<Together>, Error> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for (n, request) in requests.iter().enumerate() {
            let mut open = match self.begin().await {
                Ok(open) => open,
                Err(error) if outcomes.is_empty() => return Err(error),
                Err(error) => {
                    outcomes.push(Together::Failed(error.into()));
                    continue;
                }
            };
            if let Err(error) = effect(n, self.lend(&mut open)).await {
                self.rollback(open).await;
                outcomes.push(Together::Failed(error));
                continue;
            }
            outcomes.push(match self.commit(open, scope, request).await {
                Ok(Commit::Committed) => Together::Committed,
                Ok(Commit::Fenced) => Together::Fenced,
                Err(error) if error.is_retryable() => Together::Unknown(error),
                Err(error) => Together::Failed(error.into()),
            });
        }
        Ok(outcomes)
    }
}

enum Finished {
    Committed,
    RolledBack,
    Unknown(Error),
}

async fn simple(conn: &mut PgConnection, sql: &'static str) -> Result<(), Error> {
    raw_sql(sql).execute(conn).await.map(drop).map_err(|error| store_error(TOGETHER, error))
}

/// How many of the claims were held, and are completed now.
async fn finish(
    conn: &mut PgConnection,
    schema: &str,
    scope: i64,
    done: &[&CompleteRequest],
) -> Result<u64, sqlx::Error> {
    let mut sorted = done.to_vec();
    sorted.sort_unstable_by_key(|request| request.lease.key);
    // The keys stand there twice, so that they are looked up one by one, and never by a scan of the table. They are locked
    // in their order before they are written.
    let sql = format!(
        "WITH given AS MATERIALIZED (SELECT * FROM unnest($2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bytea[]) \
         AS given (k, o, e, t, r)), \
         locked AS MATERIALIZED (SELECT key FROM {schema}.keys WHERE scope = $1 AND key = ANY($2::bytea[]) ORDER BY key FOR UPDATE) \
         UPDATE {schema}.keys AS keys SET state = 4, started = false, lease_until = 0, written_at = at.now, ttl = t, \
         expires_at = at.now + t, reason = NULL, error = NULL, result = r \
         FROM (SELECT {NOW} AS now OFFSET 0) AS at, given \
         WHERE keys.scope = $1 AND keys.key = ANY(ARRAY(SELECT key FROM locked)) AND keys.key = k \
           AND keys.state = 1 AND keys.owner = o AND keys.fence = e AND keys.expires_at > at.now AND {IS_OPEN} AND {IS_DURABLE}"
    );
    let written = query(AssertSqlSafe(sql))
        .bind(scope)
        .bind(row::key_bytes(sorted.iter().map(|request| &request.lease.key)))
        .bind(row::owner_bytes(sorted.iter().map(|request| &request.lease.owner)))
        .bind(row::integers(sorted.iter().map(|request| request.lease.fence)))
        .bind(row::integers(sorted.iter().map(|request| micros(request.ttl))))
        .bind(sorted.iter().map(|request| request.result.as_deref()).collect::<Vec<Option<&[u8]>>>())
        .execute(conn)
        .await?;
    Ok(written.rows_affected())
}
