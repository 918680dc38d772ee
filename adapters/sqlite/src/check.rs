//! Checks at startup that the file is writable and its settings keep the promises.

use onceward::Error;
use onceward::store::Advice;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Row, query};

use crate::config::SqliteConfig;
use crate::error::store_error;
use crate::migrate;
use crate::reader::READ;
use crate::writer::{WRITE, Writer, connect};

/// Opens and rolls back a write transaction, and reports the schema's version and the file's settings.
pub(crate) async fn check(config: &SqliteConfig, writer: &Writer) -> Result<Vec<Advice>, Error> {
    let mut slot = writer.turn().await;
    let version = migrate::check(connect(&mut slot).await?).await?;
    slot.begin().await.map_err(|error| store_error(WRITE, error))?;
    slot.rollback().await;
    let conn = slot.conn().await.map_err(|error| store_error(READ, error))?;
    let sqlite: String = read_value(conn, "SELECT sqlite_version()").await?;
    let journal: String = read_value(conn, "PRAGMA journal_mode").await?;
    let synchronous: i64 = read_value(conn, "PRAGMA synchronous").await?;

    let path = config.path.display();
    let writable = format!("SQLite {sqlite}: {path} is writable, schema version {version}");
    let journal = if journal.eq_ignore_ascii_case("wal") {
        Advice::ok("journal_mode is WAL: readers do not wait for the writer")
    } else {
        let text =
            format!("journal_mode is {journal} where WAL was asked for: is {path} on a network file system?");
        Advice::warning("sqlite-journal-not-wal", text)
    };
    let synchronous = if synchronous >= 2 {
        Advice::ok("synchronous is FULL: completions survive a power cut")
    } else {
        let text = format!("synchronous is {synchronous} where FULL was asked for: completions may be lost");
        Advice::error("sqlite-not-synchronous", text)
    };
    Ok(vec![Advice::ok(writable), journal, synchronous])
}

/// The first column of the only row of `sql`.
async fn read_value<T>(conn: &mut SqliteConnection, sql: &'static str) -> Result<T, Error>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    let row = query(AssertSqlSafe(sql)).fetch_one(conn).await;
    row.and_then(|row| row.try_get(0)).map_err(|error| store_error(READ, error))
}
