//! Positions in the transactions of effects: [`PositionStore`] on the table `processed_offsets`.

mod unclaimed;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::store::{
    CompleteRequest, KeyMark, LogPartition, MarkRequest, MarkedCommit, MarkedKey, Ownership, PositionStore,
};
use onceward::{Error, ErrorKind, Scope};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row, query};

use crate::connection::PgConn;
use crate::error::store_error;
use crate::guard::{join_task, within};
use crate::operators::{CONCAT, EQ, GE, GT, LE, MINUS, OVERLAPS, PLUS};
use crate::position::unclaimed::{MARK_KEYS, mark_keys};
use crate::row::{NOW, integer};
use crate::session::WRITE;
use crate::store::PgStore;
use crate::transaction::completion::{complete, end_of_effect};

const OWN: &str = "take over a partition";
const MARK: &str = "commit the effect and its position";

#[async_trait]
impl PositionStore for PgStore {
    async fn own(&self, scope: &Scope, partition: &LogPartition) -> Result<Ownership, Error> {
        let scope = self.sessions().scope_id(scope).await.map_err(|error| error.into_error(WRITE))?;
        let (schema, named) = (self.schema(), partition.clone());
        // Repeated after a lost reply it raises the epoch once more, which hurts nobody.
        let owned = self.sessions().run_with_retry(OWN, true, move |conn| {
            let (schema, named) = (schema.clone(), named.clone());
            Box::pin(async move {
                let sql = format!(
                    "INSERT INTO {schema}.processed_offsets AS p \
                     (scope, group_name, incarnation, partition, epoch, watermark, done, written_at) \
                     VALUES ($1, $2, $3, $4, 1, 0, '{{}}', {NOW}) \
                     ON CONFLICT (scope, group_name, incarnation, partition) DO UPDATE \
                     SET epoch = p.epoch + 1, written_at = excluded.written_at RETURNING epoch, watermark, done"
                );
                let row = query(AssertSqlSafe(sql))
                    .bind(scope)
                    .bind(&*named.group)
                    .bind(&*named.incarnation)
                    .bind(i64::from(named.partition))
                    .fetch_one(conn)
                    .await?;
                ownership(named, &row)
            })
        });
        owned.await.map_err(|error| error.into_error(OWN))
    }

    async fn mark_keys(
        &self,
        conn: PgConn,
        scope: &Scope,
        ttl: Duration,
        keys: &[KeyMark],
    ) -> Result<(PgConn, Vec<MarkedKey>), Error> {
        let scope = self.sessions().scope_id(scope).await.map_err(|error| error.into_error(MARK_KEYS))?;
        let task = mark_keys(self.schema(), conn, scope, ttl, keys.to_vec());
        join_task(tokio::spawn(within(self.sessions().patience, MARK_KEYS, task)).await)?
    }

    async fn commit_at(
        &self,
        conn: PgConn,
        scope: &Scope,
        mark: &MarkRequest,
        completion: Option<&CompleteRequest>,
    ) -> Result<MarkedCommit, Error> {
        let (schema, patience) = (self.schema(), self.sessions().patience);
        let task = commit_at(schema, conn, scope.clone(), mark.clone(), completion.cloned(), patience);
        join_task(tokio::spawn(within(patience, MARK, task)).await)?
    }
}

fn ownership(partition: LogPartition, row: &PgRow) -> Result<Ownership, sqlx::Error> {
    let number = |value: i64| {
        u64::try_from(value).map_err(|_| sqlx::Error::Decode(format!("{value} is negative").into()))
    };
    let watermark = number(row.try_get("watermark")?)?;
    let done = row.try_get::<Vec<i64>, _>("done")?.into_iter().map(number).collect::<Result<Vec<_>, _>>()?;
    let nothing = watermark == 0 && done.is_empty();
    let epoch = number(row.try_get("epoch")?)?;
    Ok(Ownership { partition, epoch, watermark: (!nothing).then_some(watermark), done })
}

async fn commit_at(
    schema: Arc<str>,
    mut open: PgConn,
    scope: Scope,
    mark: MarkRequest,
    completion: Option<CompleteRequest>,
    patience: Duration,
) -> Result<MarkedCommit, Error> {
    let conn = open.connection();
    end_of_effect(conn).await?;
    // LockPolicy the key, then the position: all transactions take these two locks in the same order, and that of the partition,
    // which all of its transactions want, is held the shorter.
    if let Some(request) = &completion
        && !complete(&schema, conn, &scope, request).await?
    {
        open.end().await;
        return Ok(MarkedCommit::Fenced);
    }
    let outcome = write_mark(conn, &schema, &scope, &mark).await?;
    if outcome == MarkedCommit::Committed {
        // After an error nobody knows whether it is committed; the connection is closed.
        open.commit_plain(patience).await.map_err(|error| store_error(MARK, error))?;
    } else {
        open.end().await;
    }
    Ok(outcome)
}

/// The statement that guards the transaction: it finds its row under the owner's epoch only.
async fn write_mark(
    conn: &mut PgConnection,
    schema: &str,
    scope: &Scope,
    mark: &MarkRequest,
) -> Result<MarkedCommit, Error> {
    let failed = |error| store_error(MARK, error);
    let offset = |offset: u64| {
        i64::try_from(offset).map_err(|_| {
            Error::new(ErrorKind::Internal, MARK, format!("offset {offset} is larger than any log's"))
        })
    };
    let offsets = mark.offsets.iter().map(|one| offset(*one)).collect::<Result<Vec<_>, _>>()?;
    let floor = offset(mark.floor)?;
    let named = format!(
        "scope {EQ} (SELECT id FROM {schema}.scopes WHERE name {EQ} $1) AND group_name {EQ} $2 AND incarnation {EQ} $3 \
         AND partition {EQ} $4"
    );
    // Of the distinct offsets from the base on, e − rank is the base as long as there is no gap: so far the watermark goes.
    let sql = format!(
        "UPDATE {schema}.processed_offsets AS p SET written_at = {NOW}, (watermark, done) = (\
           SELECT greatest(p.watermark, $7) {PLUS} pg_catalog.count(*) FILTER (WHERE n.gap {EQ} 0), \
             coalesce(pg_catalog.array_agg(n.e ORDER BY n.e) FILTER (WHERE n.gap {GT} 0), '{{}}') \
           FROM (SELECT d.e, d.e {MINUS} greatest(p.watermark, $7) \
               {MINUS} pg_catalog.row_number() OVER (ORDER BY d.e) {PLUS} 1 AS gap \
             FROM (SELECT DISTINCT u.e FROM pg_catalog.unnest(p.done {CONCAT} $6::bigint[]) AS u (e) \
               WHERE u.e {GE} greatest(p.watermark, $7)) AS d) AS n) \
         WHERE {named} AND epoch {EQ} $5 AND NOT p.done {OVERLAPS} $6::bigint[] \
           AND p.watermark {LE} ALL ($6::bigint[])"
    );
    let asked = |sql: String| {
        query(AssertSqlSafe(sql))
            .bind(scope.as_str())
            .bind(&*mark.partition.group)
            .bind(&*mark.partition.incarnation)
            .bind(i64::from(mark.partition.partition))
            .bind(integer(mark.epoch))
    };
    let written = asked(sql).bind(offsets).bind(floor).execute(&mut *conn).await.map_err(failed)?;
    if written.rows_affected() == 1 {
        return Ok(MarkedCommit::Committed);
    }
    let sql = format!("SELECT epoch {EQ} $5 FROM {schema}.processed_offsets WHERE {named}");
    let row = asked(sql).fetch_optional(conn).await.map_err(failed)?;
    let owner = row.map(|row| row.try_get(0)).transpose().map_err(failed)?.unwrap_or(false);
    Ok(if owner { MarkedCommit::Processed } else { MarkedCommit::NotOwner })
}
