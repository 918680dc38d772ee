//! Writes messages to the outbox.

use onceward::outbox::acceptable;
use onceward::{Error, Outgoing};
use sqlx::{PgConnection, QueryBuilder};

use crate::error::store_error;

const PUT: &str = "write to the outbox";
/// Rows in one statement; far below the limit of parameters.
const CHUNK: usize = 1_000;

/// Writes `messages` in their order. `schema` is quoted.
pub(crate) async fn write(conn: &mut PgConnection, schema: &str, messages: &[Outgoing]) -> Result<(), Error> {
    for message in messages {
        acceptable(message)?;
    }
    for chunk in messages.chunks(CHUNK) {
        let insert = format!(
            "INSERT INTO {schema}.outbox (id, destination, order_key, header_names, header_values, payload) "
        );
        let mut statement = QueryBuilder::new(insert);
        statement.push_values(chunk, |mut row, message| {
            row.push("coalesce(");
            row.push_bind_unseparated(Some(message.id.as_str()).filter(|id| !id.is_empty()));
            row.push_unseparated(", pg_catalog.gen_random_uuid()::pg_catalog.text)");
            row.push_bind(message.destination.as_str());
            row.push_bind(message.order_key.as_deref().filter(|key| !key.is_empty()));
            row.push_bind(message.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
            row.push_bind(message.headers.iter().map(|(_, value)| &value[..]).collect::<Vec<_>>());
            row.push_bind(&message.payload[..]);
        });
        // The text depends on the number of rows: only the statement for one row is kept prepared.
        let statement = statement.build().persistent(chunk.len() == 1);
        statement.execute(&mut *conn).await.map_err(|error| store_error(PUT, error))?;
    }
    Ok(())
}
