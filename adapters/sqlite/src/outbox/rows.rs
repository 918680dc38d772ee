//! Messages as rows of `onceward_outbox`.

use bytes::Bytes;
use onceward::Outgoing;
use onceward::outbox::OutboxRow;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// The columns that [`row_of`] reads.
pub(super) const COLUMNS: &str = "seq, attempts, id, destination, order_key, headers, payload";

/// The value of a header in JSON, which has no bytes.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum HeaderValue<'a> {
    Text(std::borrow::Cow<'a, str>),
    Bytes { hex: String },
}

/// The headers of a message as the column holds them.
pub(super) fn headers_of(message: &Outgoing) -> String {
    let value = |bytes: &'_ Bytes| match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::json!(text),
        Err(_) => serde_json::json!({ "hex": hex::encode(bytes) }),
    };
    let pairs = message.headers.iter().map(|(name, bytes)| serde_json::json!([name, value(bytes)]));
    serde_json::Value::Array(pairs.collect()).to_string()
}

fn parsed(headers: &str) -> Result<Vec<(String, Bytes)>, sqlx::Error> {
    let pairs: Vec<(String, HeaderValue<'_>)> =
        serde_json::from_str(headers).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let bytes = |value| match value {
        HeaderValue::Text(text) => Ok(Bytes::from(text.into_owned())),
        HeaderValue::Bytes { hex } => {
            hex::decode(hex).map(Bytes::from).map_err(|error| sqlx::Error::Decode(error.into()))
        }
    };
    pairs.into_iter().map(|(name, value)| Ok((name, bytes(value)?))).collect()
}

/// A row as it is found.
pub(super) enum DecodedRow {
    Row(OutboxRow),
    DamagedRow(DamagedRow),
}

/// A row that cannot be read: a program wrote it with SQL before the schema refused such rows, or past it.
pub(super) struct DamagedRow {
    pub(super) seq: i64,
    pub(super) attempts: u32,
    pub(super) order_key: Option<Vec<u8>>,
    /// What is wrong with it, without its content.
    pub(super) what: &'static str,
}

pub(super) fn decode_row(row: &SqliteRow) -> Result<DecodedRow, sqlx::Error> {
    let seq = row.try_get("seq")?;
    let attempts = u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(0);
    Ok(match decode_message(row) {
        Ok(message) => DecodedRow::Row(OutboxRow { seq, attempts, message }),
        Err(what) => {
            DecodedRow::DamagedRow(DamagedRow { seq, attempts, order_key: row.try_get("order_key")?, what })
        }
    })
}

fn decode_message(row: &SqliteRow) -> Result<Outgoing, &'static str> {
    let bytes =
        |column: &str| row.try_get::<Option<&[u8]>, _>(column).map(|found| found.map(Bytes::copy_from_slice));
    let headers: &str = row.try_get("headers").map_err(|_| "headers is not text in UTF-8")?;
    Ok(Outgoing {
        destination: row.try_get("destination").map_err(|_| "destination is not text in UTF-8")?,
        id: row.try_get("id").map_err(|_| "id is not text in UTF-8")?,
        order_key: bytes("order_key").map_err(|_| "order_key is not a blob")?,
        headers: parsed(headers)
            .map_err(|_| "headers is not a JSON array of pairs: a name, and a text or {\"hex\": \"00ff\"}")?,
        payload: bytes("payload").map_err(|_| "payload is not a blob")?.unwrap_or_default(),
        ..Outgoing::default()
    })
}

/// Row numbers as one JSON parameter, which a statement expands with `json_each`.
pub(super) fn seq_list(seqs: &[i64]) -> String {
    let seqs: Vec<_> = seqs.iter().map(i64::to_string).collect();
    format!("[{}]", seqs.join(","))
}
