//! Reads rows of the outbox, each for itself: one that cannot be read fails alone.

use bytes::Bytes;
use onceward::Outgoing;
use onceward::outbox::OutboxRow;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::Oid;
use sqlx::{Row, ValueRef as _};

/// The columns that [`row_of`] reads. The arrays come with their shapes: a list has one dimension and begins at 1.
pub(super) const COLUMNS: &str =
    "seq, attempts, id, destination, order_key, header_names, header_values, payload";

/// A row that cannot be published as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnreadableRow {
    pub(super) seq: i64,
    /// Attempts so far.
    pub(super) attempts: u32,
    pub(super) order_key: Option<Vec<u8>>,
    /// What is wrong, for people.
    pub(super) what: String,
}

/// Reads a row.
///
/// # Errors
/// The outer one if not even its number can be read; the inner one if the message cannot.
pub(super) fn row_of(row: &PgRow) -> Result<Result<OutboxRow, UnreadableRow>, sqlx::Error> {
    let seq = row.try_get("seq")?;
    let attempts = u32::try_from(row.try_get::<i32, _>("attempts")?).unwrap_or(0);
    let order_key: Option<Vec<u8>> = row.try_get("order_key")?;
    let message = message_of(row, order_key.as_deref());
    Ok(message.map(|message| OutboxRow { seq, attempts, message }).map_err(|what| UnreadableRow {
        seq,
        attempts,
        order_key,
        what,
    }))
}

fn message_of(row: &PgRow, order_key: Option<&[u8]>) -> Result<Outgoing, String> {
    fn column<'r, T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>>(
        row: &'r PgRow,
        name: &'static str,
    ) -> Result<T, String> {
        row.try_get(name).map_err(|error| format!("its {name} cannot be read: {error}"))
    }
    let names: Vec<String> = list(row, "header_names", |bytes| {
        String::from_utf8(bytes.to_vec()).map_err(|_| "a text that is no UTF-8".to_owned())
    })?;
    let values: Vec<Bytes> = list(row, "header_values", |bytes| Ok(Bytes::copy_from_slice(bytes)))?;
    if names.len() != values.len() {
        return Err(format!(
            "it has {} header_names and {} header_values; give one value for each name",
            names.len(),
            values.len()
        ));
    }
    Ok(Outgoing {
        destination: column(row, "destination")?,
        id: column(row, "id")?,
        order_key: order_key.map(Bytes::copy_from_slice),
        headers: names.into_iter().zip(values).collect(),
        payload: Bytes::from(column::<Vec<u8>>(row, "payload")?),
        ..Outgoing::default()
    })
}

/// An array as a list. Its binary form: dimensions, flags, type of the elements; for each dimension its length and lower
/// bound; then the elements, each with its length, which is -1 for NULL.
fn list<T>(row: &PgRow, name: &str, element: impl Fn(&[u8]) -> Result<T, String>) -> Result<Vec<T>, String> {
    let unreadable = |what: &str| format!("its {name} {what}");
    let value = row.try_get_raw(name).map_err(|error| unreadable(&error.to_string()))?;
    if value.is_null() {
        return Err(unreadable("is NULL; write an empty array"));
    }
    let bytes = value.as_bytes().map_err(|error| unreadable(&error.to_string()))?;
    let mut rest = ByteReader(bytes);
    let cut = || unreadable("cannot be read");
    let dimensions = rest.int().ok_or_else(cut)?;
    let (_flags, _type) = (rest.int().ok_or_else(cut)?, Oid(rest.int().ok_or_else(cut)?.cast_unsigned()));
    if dimensions == 0 {
        return Ok(Vec::new());
    }
    if dimensions != 1 {
        return Err(unreadable(&format!("has {dimensions} dimensions; write a plain list")));
    }
    let length = rest.int().ok_or_else(cut)?;
    let _lower_bound = rest.int().ok_or_else(cut)?;
    let mut found = Vec::new();
    for n in 1..=length {
        let size = rest.int().ok_or_else(cut)?;
        let Ok(size) = usize::try_from(size) else {
            return Err(unreadable(&format!("holds NULL at place {n}; leave that header out")));
        };
        let bytes = rest.take(size).ok_or_else(cut)?;
        found.push(element(bytes).map_err(|what| unreadable(&format!("holds {what} at place {n}")))?);
    }
    Ok(found)
}

struct ByteReader<'b>(&'b [u8]);

impl<'b> ByteReader<'b> {
    fn take(&mut self, size: usize) -> Option<&'b [u8]> {
        let (bytes, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(bytes)
    }

    fn int(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }
}
