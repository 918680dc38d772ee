//! The store: [`PgStore`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::store::transition::{Moment, Record, Step};
use onceward::store::{
    Advice, AdviceLevel, Burial, BuryRequest, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion,
    FailRequest, Failure, KeyRecord, KeyState, KeyStats, Lease, ListQuery, Redrive, RedriveRequest,
    RenewRequest, Renewal, StoreCapabilities,
};
use onceward::{Error, Key, Scope, Store};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Connection as _, Executor, Row, query};

use crate::config::{PgConfig, quoted};
use crate::error::store_error;
use crate::link::{Batch, Link, READ, WRITE};
use crate::{fast, migrate, row};

/// Keeps keys in a Postgres schema. Clones share one pool.
///
/// - A batch of new claims, and a batch of completions, is one statement. Keys that are known already are decided
///   under row locks, taken in the order of the keys.
/// - The server's clock decides leases and TTLs.
/// - A row that another transaction holds for longer than [`lock_timeout`](PgConfig::lock_timeout) counts as in
///   progress for a claim; the batch's other keys go on.
/// - Completions say `synchronous_commit = on` themselves, whatever the role or the database is set to.
#[derive(Clone)]
pub struct PgStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: PgConfig,
    link: Link,
    effects: PgPool,
}

impl std::fmt::Debug for PgStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgStore").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl PgStore {
    /// Connects, and brings the schema up to date if the configuration says so.
    ///
    /// # Errors
    /// [`Error`] if the configuration contradicts itself, the server cannot be reached, or the schema was written by a
    /// newer version or holds keys of another encoding.
    pub async fn connect(config: PgConfig) -> Result<Self, Error> {
        config.validate()?;
        let schema = config.schema_name().to_owned();
        let mut conn = config.connect().await?;
        if config.migrate {
            let applied = migrate::migrate(&mut conn, &schema).await?;
            if applied > 0 {
                tracing::info!(place = %config.place(), schema, applied, "the Postgres store's schema is up to date");
            }
        }
        migrate::check(&mut conn, &schema).await?;
        close(conn).await;
        let link = Link::new(config.pool(), quoted(&schema)?, config.statement_timeout);
        let effects = config.effects_pool();
        Ok(Self { inner: Arc::new(Inner { config, link, effects }) })
    }

    /// Brings the schema up to date, whatever the configuration says, and answers how many steps that took.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn migrate(config: &PgConfig) -> Result<u32, Error> {
        config.validate()?;
        let mut conn = config.connect().await?;
        let applied = migrate::migrate(&mut conn, config.schema_name()).await;
        close(conn).await;
        applied
    }

    /// The SQL that gives `role` what a worker needs, and no more. To be run by the schema's owner, after migrations.
    ///
    /// # Errors
    /// [`Error`] if the schema or the role is no plain name (`[a-z_][a-z0-9_]{0,62}`).
    pub fn grants(config: &PgConfig, role: &str) -> Result<String, Error> {
        config.validate()?;
        let (schema, role) = (quoted(config.schema_name())?, quoted(role)?);
        Ok(format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.keys TO {role};\n\
             GRANT SELECT, INSERT, UPDATE ON {schema}.checkpoints TO {role};\n\
             GRANT SELECT, INSERT ON {schema}.scopes TO {role};\n\
             GRANT SELECT, UPDATE ON {schema}.meta TO {role};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.outbox TO {role};\n\
             GRANT SELECT, INSERT, UPDATE ON {schema}.processed_offsets TO {role};\n\
             GRANT USAGE ON SEQUENCE {schema}.outbox_seq TO {role};\n\
             GRANT SELECT ON {schema}.migrations TO {role};\n"
        ))
    }

    /// Closes the store's own connections, when they are idle.
    pub async fn close(&self) {
        self.inner.link.pool.close().await;
        if self.inner.config.effects.is_none() {
            self.inner.effects.close().await;
        }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.inner.link
    }

    pub(crate) fn schema(&self) -> Arc<str> {
        self.inner.link.schema.clone()
    }

    /// For one connection that listens.
    pub(crate) fn listener_pool(&self) -> PgPool {
        self.inner.config.listener_pool()
    }

    pub(crate) fn effects(&self) -> &PgPool {
        &self.inner.effects
    }

    async fn call<I, T>(
        &self,
        scope: &Scope,
        items: &[I],
        key: fn(&I) -> Key,
        decide: fn(&mut Record, Moment, &I) -> Step<T>,
        repeatable: bool,
    ) -> Vec<Result<T, Error>>
    where
        I: Clone + Send + Sync + 'static,
        T: Send + 'static,
    {
        let decide = Arc::new(decide);
        let batch = Batch { items: items.to_vec(), key, decide, held: None, occupy: false, repeatable };
        self.link().call(scope, batch).await
    }
}

async fn close(conn: sqlx::PgConnection) {
    if let Err(error) = conn.close().await {
        tracing::debug!(%error, "closing a connection to the Postgres store failed");
    }
}

/// The answer for a key whose row another transaction holds: it may be free at any moment.
fn held() -> Claim {
    Claim::InProgress { retry_in: Duration::from_millis(250) }
}

#[async_trait]
impl Store for PgStore {
    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities::new("postgres").durable().shared()
    }

    async fn check(&self) -> Result<Vec<Advice>, Error> {
        let config = &self.inner.config;
        let failed = |error| store_error("check the Postgres store", error);
        let mut conn = config.connect().await?;
        let version = migrate::check(&mut conn, config.schema_name()).await?;
        let row = conn
            .fetch_one(
                "SELECT current_setting('server_version'), current_setting('server_version_num')::int, \
                 current_setting('fsync') = 'on', pg_is_in_recovery(), \
                 current_setting('default_transaction_read_only') = 'on', \
                 current_setting('full_page_writes') = 'on', current_setting('synchronous_standby_names')",
            )
            .await
            .map_err(failed)?;
        close(conn).await;
        let text = |n| row.try_get::<String, _>(n).map_err(failed);
        let flag = |n| row.try_get::<bool, _>(n).map_err(failed);
        let number: i32 = row.try_get(1).map_err(failed)?;
        let (server, place, schema) = (text(0)?, config.place(), config.schema_name());
        let advice = Advice::new;
        let mut found = vec![advice(
            AdviceLevel::Ok,
            format!("Postgres {server} at {place}: schema {schema}, version {version}"),
        )];
        if number < 130_000 {
            found.push(advice(
                AdviceLevel::Error,
                format!("Postgres {server} is too old; 13 or later is needed"),
            ));
        }
        if flag(3)? || flag(4)? {
            found.push(advice(AdviceLevel::Error, format!("{place} is read-only; name the primary")));
        }
        found.push(if flag(2)? && flag(5)? {
            advice(
                AdviceLevel::Ok,
                "fsync and full_page_writes are on: completions survive a power cut".to_owned(),
            )
        } else {
            let text =
                "fsync or full_page_writes is off: a power cut loses completions; turn both on".to_owned();
            advice(AdviceLevel::Error, text)
        });
        if text(6)?.is_empty() {
            let text = "no synchronous standby: a failover may lose the last completions".to_owned();
            found.push(advice(AdviceLevel::Warning, text));
        }
        Ok(found)
    }

    async fn claim(
        &self,
        scope: &Scope,
        terms: &ClaimTerms,
        batch: &[ClaimRequest],
    ) -> Vec<Result<Claim, Error>> {
        if batch.is_empty() {
            return Vec::new();
        }
        let mut won = match fast::claim(self.link(), scope, terms, batch).await {
            Ok(won) => won,
            Err(error) => return batch.iter().map(|_| Err(error.replicate())).collect(),
        };
        let known: Vec<_> = batch.iter().filter(|request| !won.contains_key(&request.key)).copied().collect();
        let terms = *terms;
        let decide = Arc::new(move |record: &mut Record, at, request: &ClaimRequest| {
            record.claim(at, &terms, request)
        });
        let long = Batch {
            items: known,
            key: |request| request.key,
            decide,
            held: Some(held),
            occupy: true,
            repeatable: true,
        };
        let mut rest = self.link().call(scope, long).await.into_iter();
        let answer = |request: &ClaimRequest| won.remove(&request.key).map(Ok).or_else(|| rest.next());
        batch.iter().filter_map(answer).collect()
    }

    async fn complete(&self, scope: &Scope, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        if batch.is_empty() {
            return Vec::new();
        }
        let mut done = match fast::complete(self.link(), scope, batch).await {
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
            occupy: true,
            repeatable: true,
        };
        let mut rest = self.link().call(scope, long).await.into_iter();
        let answer =
            |request: &CompleteRequest| done.remove(&request.lease.key).map(Ok).or_else(|| rest.next());
        batch.iter().filter_map(answer).collect()
    }

    async fn renew(&self, scope: &Scope, batch: &[RenewRequest]) -> Vec<Result<Renewal, Error>> {
        self.call(scope, batch, |request| request.lease.key, Record::renew, true).await
    }

    async fn fail(&self, scope: &Scope, batch: &[FailRequest]) -> Vec<Result<Failure, Error>> {
        self.call(scope, batch, |request| request.lease.key, Record::fail, true).await
    }

    async fn bury(&self, scope: &Scope, batch: &[BuryRequest]) -> Vec<Result<Burial, Error>> {
        self.call(scope, batch, |request| request.lease.key, Record::bury, true).await
    }

    async fn release(&self, scope: &Scope, batch: &[Lease]) -> Vec<Result<bool, Error>> {
        self.call(scope, batch, |lease| lease.key, Record::release, true).await
    }

    async fn redrive(&self, scope: &Scope, batch: &[RedriveRequest]) -> Vec<Result<Redrive, Error>> {
        self.call(scope, batch, |request| request.key, Record::redrive, true).await
    }

    async fn forget(&self, scope: &Scope, keys: &[Key]) -> Vec<Result<bool, Error>> {
        self.call(scope, keys, |key| *key, |record, at, _| record.forget(at), false).await
    }

    async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyRecord>, Error> {
        let at = self.link().moment().await.map_err(|attempt| attempt.told(READ))?;
        let (schema, scope, wanted) = (self.schema(), scope.as_str().to_owned(), *key);
        let found = self
            .link()
            .run_again(READ, true, move |conn| {
                let (schema, scope) = (schema.clone(), scope.clone());
                Box::pin(async move {
                    let sql = format!(
                        "SELECT {} FROM {schema}.keys \
                         WHERE scope = (SELECT id FROM {schema}.scopes WHERE name = $1) AND key = $2",
                        row::COLUMNS
                    );
                    query(AssertSqlSafe(sql))
                        .bind(scope)
                        .bind(wanted.as_bytes().as_slice())
                        .fetch_optional(conn)
                        .await
                })
            })
            .await
            .map_err(|attempt| attempt.told(READ))?;
        let record = found.as_ref().map(row::record_of).transpose()?;
        Ok(record.and_then(|record| record.view(*key, at)))
    }

    async fn list(&self, scope: &Scope, list: &ListQuery) -> Result<Vec<KeyRecord>, Error> {
        let at = self.link().moment().await.map_err(|attempt| attempt.told(READ))?;
        let (schema, scope) = (self.schema(), scope.as_str().to_owned());
        let after = list.after.as_ref().map_or(Vec::new(), |key| key.as_bytes().to_vec());
        let (state, limit) = (list.state.map(|state| i16::from(state.code())), i64::from(list.limit));
        let found = self
            .link()
            .run_again(READ, true, move |conn| {
                let (schema, scope, after) = (schema.clone(), scope.clone(), after.clone());
                Box::pin(async move {
                    let sql = format!(
                        "SELECT {} FROM {schema}.keys \
                         WHERE scope = (SELECT id FROM {schema}.scopes WHERE name = $1) AND key > $2 \
                           AND expires_at > $3 AND written_at > 0 AND ($4::smallint IS NULL OR state = $4) \
                         ORDER BY key LIMIT $5",
                        row::COLUMNS
                    );
                    let statement =
                        query(AssertSqlSafe(sql)).bind(scope).bind(after).bind(row::integer(at.now));
                    statement.bind(state).bind(limit).fetch_all(conn).await
                })
            })
            .await
            .map_err(|attempt| attempt.told(READ))?;
        let mut records = Vec::new();
        for row in &found {
            let key = row::key_of(row).map_err(|error| store_error(READ, error))?;
            records.extend(row::record_of(row)?.view(key, at));
        }
        Ok(records)
    }

    async fn stats(&self, scope: &Scope) -> Result<KeyStats, Error> {
        let (schema, scope) = (self.schema(), scope.as_str().to_owned());
        let counts: Vec<(i16, i64)> = self
            .link()
            .run_again(READ, true, move |conn| {
                let (schema, scope) = (schema.clone(), scope.clone());
                Box::pin(async move {
                    let sql = format!(
                        "SELECT state, count(*) FROM {schema}.keys \
                         WHERE scope = (SELECT id FROM {schema}.scopes WHERE name = $1) AND expires_at > {} \
                           AND written_at > 0 GROUP BY state",
                        row::NOW
                    );
                    let rows = query(AssertSqlSafe(sql)).bind(scope).fetch_all(conn).await?;
                    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
                })
            })
            .await
            .map_err(|attempt| attempt.told(READ))?;
        let mut stats = KeyStats::default();
        for (code, count) in counts {
            if let Some(state) = u8::try_from(code).ok().and_then(KeyState::from_code) {
                stats.set(state, u64::try_from(count).unwrap_or(0));
            }
        }
        Ok(stats)
    }

    /// One cleaner at a time: while another worker purges, this answers 0. Rows that are in use are passed over.
    async fn purge(&self, limit: u32) -> Result<u64, Error> {
        let schema = self.schema();
        self.link()
            .run_again(WRITE, false, move |conn| {
                let schema = schema.clone();
                Box::pin(async move {
                    conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
                    let turn = query("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 7))")
                        .bind(format!("onceward purge {schema}"))
                        .fetch_one(&mut *conn)
                        .await?;
                    let mut removed = 0;
                    if turn.try_get(0)? {
                        let sql = format!(
                            "WITH at AS MATERIALIZED (SELECT {} AS now), \
                             gone AS (DELETE FROM {schema}.keys WHERE (scope, key) IN \
                               (SELECT scope, key FROM {schema}.keys WHERE expires_at <= (SELECT now FROM at) \
                                ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING fence), \
                             raised AS (UPDATE {schema}.meta SET value = greatest(value, (SELECT max(fence) FROM gone)) \
                               WHERE name = 'fence_floor' AND value < (SELECT max(fence) FROM gone)) \
                             SELECT count(*) FROM gone",
                            row::NOW
                        );
                        let row =
                            query(AssertSqlSafe(sql)).bind(i64::from(limit)).fetch_one(&mut *conn).await?;
                        removed = u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0);
                    }
                    conn.execute("COMMIT").await?;
                    Ok(removed)
                })
            })
            .await
            .map_err(|attempt| attempt.told(WRITE))
    }

    fn purge_interval(&self) -> Option<Duration> {
        Some(Duration::from_secs(30))
    }
}
