//! Removes expired keys in small batches.

use onceward::Error;
use sqlx::{Row, query};

use crate::error::store_error;
use crate::row;
use crate::writer::{WRITE, Writer, WriterConnection, join_task, raise_fence_floor};

/// Removes at most `limit` expired keys in one transaction, and returns their number.
///
/// # Cancel safety
/// The transaction runs in a task, which a dropped call does not stop.
pub(crate) async fn purge(writer: Writer, limit: u32) -> Result<u64, Error> {
    let task = tokio::spawn(async move {
        let mut slot = writer.turn().await;
        slot.begin().await?;
        let outcome = remove_expired(&mut slot, &writer, limit).await;
        slot.finish(outcome).await
    });
    join_task(task.await)?.map_err(|error| store_error(WRITE, error))
}

async fn remove_expired(
    slot: &mut WriterConnection,
    writer: &Writer,
    limit: u32,
) -> Result<u64, sqlx::Error> {
    let conn = slot.conn().await?;
    let now = writer.time(conn).await?;
    let removed = query(
        "DELETE FROM onceward_keys WHERE id IN \
         (SELECT id FROM onceward_keys WHERE expires_at <= ? ORDER BY expires_at LIMIT ?) \
         RETURNING fence",
    )
    .bind(row::integer(now))
    .bind(i64::from(limit))
    .fetch_all(&mut *conn)
    .await?;
    let mut floor = 0;
    for found in &removed {
        floor = floor.max(u64::try_from(found.try_get::<i64, _>(0)?).unwrap_or(0));
    }
    raise_fence_floor(conn, floor).await?;
    Ok(removed.len() as u64)
}
