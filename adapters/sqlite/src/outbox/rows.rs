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
enum Value<'a> {
    Text(std::borrow::Cow<'a, str>),
    Bytes { hex: String },
}

/// The headers of a message as the column holds them.
pub(super) fn headers_of(message: &Outgoing) -> String {
    let value = |bytes: &'_ Bytes| match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::json!(text),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            serde_json::json!({ "hex": hex })
        }
    };
    let pairs = message.headers.iter().map(|(name, bytes)| serde_json::json!([name, value(bytes)]));
    serde_json::Value::Array(pairs.collect()).to_string()
}

fn parsed(headers: &str) -> Result<Vec<(String, Bytes)>, sqlx::Error> {
    let pairs: Vec<(String, Value<'_>)> =
        serde_json::from_str(headers).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let bytes = |value| match value {
        Value::Text(text) => Ok(Bytes::from(text.into_owned())),
        Value::Bytes { hex } => unhex(&hex),
    };
    pairs.into_iter().map(|(name, value)| Ok((name, bytes(value)?))).collect()
}

fn unhex(text: &str) -> Result<Bytes, sqlx::Error> {
    let wrong = || sqlx::Error::Decode("a header is not hexadecimal".into());
    let pair = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
        u8::from_str_radix(pair, 16).map_err(|_| wrong())
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

pub(super) fn row_of(row: &SqliteRow) -> Result<OutboxRow, sqlx::Error> {
    let bytes =
        |column: &str| row.try_get::<Option<&[u8]>, _>(column).map(|found| found.map(Bytes::copy_from_slice));
    Ok(OutboxRow {
        seq: row.try_get("seq")?,
        attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(0),
        message: Outgoing {
            destination: row.try_get("destination")?,
            id: row.try_get("id")?,
            order_key: bytes("order_key")?,
            headers: parsed(row.try_get("headers")?)?,
            payload: bytes("payload")?.unwrap_or_default(),
            ..Outgoing::default()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_in_their_order() {
        let headers = vec![
            ("b".to_owned(), Bytes::from_static(b"text \"quoted\"")),
            ("a".to_owned(), Bytes::from_static(b"\xff\0")),
            ("a".to_owned(), Bytes::from_static(b"")),
            ("c".to_owned(), Bytes::from_static(b"{\"hex\": \"00\"}")),
        ];
        let message = Outgoing { headers: headers.clone(), ..Outgoing::default() };
        assert_eq!(parsed(&headers_of(&message)).unwrap(), headers);
    }
}
