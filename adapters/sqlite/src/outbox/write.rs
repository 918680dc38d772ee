//! Writes messages to the outbox.

use onceward::outbox::acceptable;
use onceward::{Error, Outgoing};
use sqlx::query;
use sqlx::sqlite::SqliteConnection;

use super::rows::encode_headers;
use crate::error::store_error;

/// Writes `messages` in their order.
pub(crate) async fn write(conn: &mut SqliteConnection, messages: &[Outgoing]) -> Result<(), Error> {
    const PUT: &str = "write to the outbox";
    for message in messages {
        acceptable(message)?;
    }
    for message in messages {
        query(
            "INSERT INTO onceward_outbox (id, destination, order_key, headers, payload) \
             VALUES (coalesce(?, lower(hex(randomblob(16)))), ?, ?, ?, ?)",
        )
        .bind(Some(message.id.as_str()).filter(|id| !id.is_empty()))
        .bind(message.destination.as_str())
        .bind(message.order_key.as_deref().filter(|key| !key.is_empty()))
        .bind(encode_headers(message))
        .bind(&message.payload[..])
        .execute(&mut *conn)
        .await
        .map_err(|error| store_error(PUT, error))?;
    }
    Ok(())
}
