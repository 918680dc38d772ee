//! Reads rows of the outbox.

use bytes::Bytes;
use onceward::Outgoing;
use onceward::outbox::OutboxRow;
use sqlx::Row;
use sqlx::postgres::PgRow;

/// The columns that [`row_of`] reads.
pub(super) const COLUMNS: &str =
    "seq, attempts, id, destination, order_key, header_names, header_values, payload";

pub(super) fn row_of(row: &PgRow) -> Result<OutboxRow, sqlx::Error> {
    let names: Vec<String> = row.try_get("header_names")?;
    let values: Vec<Vec<u8>> = row.try_get("header_values")?;
    let bytes =
        |column: &str| row.try_get::<Option<&[u8]>, _>(column).map(|found| found.map(Bytes::copy_from_slice));
    Ok(OutboxRow {
        seq: row.try_get("seq")?,
        attempts: u32::try_from(row.try_get::<i32, _>("attempts")?).unwrap_or(0),
        message: Outgoing {
            destination: row.try_get("destination")?,
            id: row.try_get("id")?,
            order_key: bytes("order_key")?,
            headers: names.into_iter().zip(values.into_iter().map(Bytes::from)).collect(),
            payload: bytes("payload")?.unwrap_or_default(),
            ..Outgoing::default()
        },
    })
}
