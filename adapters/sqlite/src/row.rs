//! Records as rows of `onceward_keys`: read and written many at a time.

use std::collections::HashMap;
use std::sync::LazyLock;

use onceward::store::transition::{Record, RecordColumns};
use onceward::{Error, ErrorKind, Key};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, query};

/// How many rows a statement handles. A batch takes the largest that it fills and then the smallest that holds the
/// rest, padded: few statements to prepare, each of them used again.
const SIZES: [usize; 5] = [1, 4, 16, 64, 256];

/// The columns that [`key_of`] and [`record_of`] read.
pub(crate) const COLUMNS: &str = "key, state, started, owner, fence, attempts, lost, generation, lease_until, first_at, \
     written_at, ttl, reason, fingerprint, error, result";

static READ: LazyLock<[String; 5]> = LazyLock::new(|| {
    SIZES.map(|size| {
        let keys = vec!["?"; size].join(",");
        format!("SELECT {COLUMNS} FROM onceward_keys WHERE scope = ? AND key IN ({keys})")
    })
});

static WRITE: LazyLock<[String; 5]> = LazyLock::new(|| {
    SIZES.map(|size| {
        let marks = vec!["?"; COLUMNS.split(',').count() + 2].join(",");
        let rows = vec![format!("({marks})"); size].join(",");
        let assignments: Vec<String> = COLUMNS
            .split(',')
            .map(str::trim)
            .filter(|column| *column != "key")
            .chain(["expires_at"])
            .map(|column| format!("{column} = excluded.{column}"))
            .collect();
        format!(
            "INSERT INTO onceward_keys (scope, expires_at, {COLUMNS}) VALUES {rows} \
             ON CONFLICT (scope, key) DO UPDATE SET {}",
            assignments.join(", ")
        )
    })
});

static DELETE: LazyLock<[String; 5]> = LazyLock::new(|| {
    SIZES.map(|size| {
        let keys = vec!["?"; size].join(",");
        format!("DELETE FROM onceward_keys WHERE scope = ? AND key IN ({keys})")
    })
});

/// Cuts `items` into pieces, each with the index of the statement for it.
fn pieces<T>(items: &[T]) -> impl Iterator<Item = (usize, &[T])> {
    items.chunks(SIZES[SIZES.len() - 1]).map(|piece| {
        let size = SIZES.iter().position(|size| *size >= piece.len()).unwrap_or(SIZES.len() - 1);
        (size, piece)
    })
}

/// The items of a piece, the last one repeated up to the statement's size.
fn padded<T>(size: usize, piece: &[T]) -> impl Iterator<Item = &T> {
    (0..SIZES[size]).map(|n| &piece[n.min(piece.len() - 1)])
}

/// The records of those of `keys` that are known. A row that cannot be understood is an error of its key alone.
pub(crate) async fn read(
    conn: &mut SqliteConnection,
    scope: i64,
    keys: &[Key],
) -> Result<HashMap<Key, Result<Record, Error>>, sqlx::Error> {
    let mut records = HashMap::with_capacity(keys.len());
    for (size, piece) in pieces(keys) {
        let mut statement = query(READ[size].as_str()).bind(scope);
        for key in padded(size, piece) {
            statement = statement.bind(key.as_bytes().as_slice());
        }
        for row in statement.fetch_all(&mut *conn).await? {
            records.insert(key_of(&row)?, record_of(&row));
        }
    }
    Ok(records)
}

/// Writes records, whether known or new.
pub(crate) async fn write(
    conn: &mut SqliteConnection,
    scope: i64,
    records: &[(Key, &Record)],
) -> Result<(), sqlx::Error> {
    for (size, piece) in pieces(records) {
        let mut statement = query(WRITE[size].as_str());
        for (key, record) in padded(size, piece) {
            let detail = record.detail.as_deref();
            statement = statement
                .bind(scope)
                .bind(integer(record.expires_at()))
                .bind(key.as_bytes().as_slice())
                .bind(i64::from(record.state.code()))
                .bind(i64::from(record.started))
                .bind(record.owner.as_bytes().as_slice())
                .bind(integer(record.fence))
                .bind(i64::from(record.attempts))
                .bind(i64::from(record.lost))
                .bind(i64::from(record.generation))
                .bind(integer(record.lease_until))
                .bind(integer(record.first_at))
                .bind(integer(record.written_at))
                .bind(integer(record.ttl))
                .bind(record.reason.map(|reason| i64::from(reason.code())))
                .bind(record.fingerprint.as_ref().map(|fingerprint| fingerprint.as_bytes().as_slice()))
                .bind(detail.and_then(|detail| detail.error.as_deref()))
                .bind(detail.and_then(|detail| detail.result.as_deref()));
        }
        statement.execute(&mut *conn).await?;
    }
    Ok(())
}

/// Removes records.
pub(crate) async fn delete(conn: &mut SqliteConnection, scope: i64, keys: &[Key]) -> Result<(), sqlx::Error> {
    for (size, piece) in pieces(keys) {
        let mut statement = query(DELETE[size].as_str()).bind(scope);
        for key in padded(size, piece) {
            statement = statement.bind(key.as_bytes().as_slice());
        }
        statement.execute(&mut *conn).await?;
    }
    Ok(())
}

/// As SQLite holds it: no larger than 2^63 − 1, which no clock and no TTL comes near.
pub(crate) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The key of a row.
pub(crate) fn key_of(row: &SqliteRow) -> Result<Key, sqlx::Error> {
    let bytes: &[u8] = row.try_get("key")?;
    let bytes = bytes.try_into().map_err(|_| sqlx::Error::Decode("a key is not 16 bytes long".into()))?;
    Ok(Key::from_bytes(bytes))
}

/// Decodes the record of a row.
///
/// # Errors
/// [`ErrorKind::Corrupt`]: the row is damaged, which concerns its key alone.
pub(crate) fn record_of(row: &SqliteRow) -> Result<Record, Error> {
    read_columns(row).and_then(RecordColumns::decode).map_err(|what| {
        let context =
            format!("a row of onceward_keys holds {what}; forget the key or restore the file from a backup");
        Error::new(ErrorKind::Corrupt, "read a record", context)
    })
}

fn read_columns(row: &SqliteRow) -> Result<RecordColumns<'_>, String> {
    fn column<'r, T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>>(
        row: &'r SqliteRow,
        name: &'static str,
    ) -> Result<T, String> {
        row.try_get(name).map_err(|error| format!("an unreadable {name} ({error})"))
    }
    Ok(RecordColumns {
        state: column(row, "state")?,
        started: column::<i64>(row, "started")? != 0,
        owner: column::<Option<&[u8]>>(row, "owner")?.unwrap_or_default(),
        fence: column(row, "fence")?,
        attempts: column(row, "attempts")?,
        lost: column(row, "lost")?,
        generation: column(row, "generation")?,
        lease_until: column(row, "lease_until")?,
        first_at: column(row, "first_at")?,
        written_at: column(row, "written_at")?,
        ttl: column(row, "ttl")?,
        reason: column(row, "reason")?,
        fingerprint: column(row, "fingerprint")?,
        error: column(row, "error")?,
        result: column(row, "result")?,
    })
}
