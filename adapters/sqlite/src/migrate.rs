//! Applies migrations of the schema, and checks its version before use.

use onceward::adapter::KEY_FORMAT;
use onceward::{Error, ErrorKind};
use onceward_migrations::{SQLITE, latest};
use sqlx::sqlite::SqliteConnection;
use sqlx::{Executor, Row, query};

use crate::error::store_error;

/// The version of the records themselves, apart from the columns that hold them.
const FORMAT: i64 = 1;

/// The versions that the file records about itself.
struct SchemaState {
    /// 0: no migrations were applied.
    schema: u32,
    format: i64,
    key_format: i64,
}

/// The schema's version, after checking that this version may use it.
pub(crate) async fn check(conn: &mut SqliteConnection) -> Result<u32, Error> {
    let found = look(conn).await.map_err(|error| store_error("read the schema's version", error))?;
    check_compatible(&found)?;
    let wanted = latest(SQLITE);
    if found.schema < wanted {
        let context = match found.schema {
            0 => "the file holds no schema of onceward; run its migrations first".to_owned(),
            version => format!(
                "its schema has version {version} and this program needs {wanted}; run onceward's migrations first"
            ),
        };
        return Err(Error::new(ErrorKind::Config, "use the SQLite store", context));
    }
    Ok(found.schema)
}

/// The number of migrations that [`migrate`] would apply.
pub(crate) async fn missing(conn: &mut SqliteConnection) -> Result<u32, Error> {
    let found = look(conn).await.map_err(|error| store_error("read the schema's version", error))?;
    check_compatible(&found)?;
    Ok(latest(SQLITE).saturating_sub(found.schema))
}

/// Applies pending migrations in one transaction, and returns their number.
pub(crate) async fn migrate(conn: &mut SqliteConnection, now: i64) -> Result<u32, Error> {
    const WRITE: &str = "migrate the SQLite store";
    let found = look(conn).await.map_err(|error| store_error(WRITE, error))?;
    check_compatible(&found)?;
    if found.schema == latest(SQLITE) {
        return Ok(0);
    }
    conn.execute("BEGIN IMMEDIATE").await.map_err(|error| store_error(WRITE, error))?;
    let outcome = apply(conn, now).await;
    let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = conn.execute(end).await.map_err(|error| store_error(WRITE, error));
    let applied = outcome?;
    ended?;
    Ok(applied)
}

/// Applies pending migrations, inside a transaction.
async fn apply(conn: &mut SqliteConnection, now: i64) -> Result<u32, Error> {
    let failed = |error| store_error("migrate the SQLite store", error);
    // Another process may have migrated while this one waited for the lock.
    let found = look(conn).await.map_err(failed)?;
    check_compatible(&found)?;
    conn.execute(
        "CREATE TABLE IF NOT EXISTS onceward_migrations (
             version    INTEGER NOT NULL PRIMARY KEY,
             name       TEXT    NOT NULL,
             applied_at INTEGER NOT NULL
         ) STRICT",
    )
    .await
    .map_err(failed)?;
    let mut applied = 0;
    for step in SQLITE.iter().filter(|step| step.version > found.schema) {
        sqlx::raw_sql(step.sql).execute(&mut *conn).await.map_err(failed)?;
        query("INSERT INTO onceward_migrations (version, name, applied_at) VALUES (?, ?, ?)")
            .bind(i64::from(step.version))
            .bind(step.name)
            .bind(now)
            .execute(&mut *conn)
            .await
            .map_err(failed)?;
        applied += 1;
    }
    for (name, value) in [("format", FORMAT), ("key_format", i64::from(KEY_FORMAT)), ("fence_floor", 0)] {
        query("INSERT INTO onceward_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(value)
            .execute(&mut *conn)
            .await
            .map_err(failed)?;
    }
    Ok(applied)
}

async fn look(conn: &mut SqliteConnection) -> Result<SchemaState, sqlx::Error> {
    let mut found = SchemaState { schema: 0, format: FORMAT, key_format: i64::from(KEY_FORMAT) };
    let table = query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'onceward_migrations'");
    if table.fetch_optional(&mut *conn).await?.is_none() {
        return Ok(found);
    }
    let row =
        query("SELECT coalesce(max(version), 0) FROM onceward_migrations").fetch_one(&mut *conn).await?;
    found.schema = u32::try_from(row.try_get::<i64, _>(0)?).unwrap_or(u32::MAX);
    for row in query("SELECT name, value FROM onceward_meta").fetch_all(&mut *conn).await? {
        match row.try_get(0)? {
            "format" => found.format = row.try_get(1)?,
            "key_format" => found.key_format = row.try_get(1)?,
            _ => {}
        }
    }
    Ok(found)
}

fn check_compatible(found: &SchemaState) -> Result<(), Error> {
    let refuse = |context: String| Err(Error::new(ErrorKind::Config, "use the SQLite store", context));
    let newest = latest(SQLITE);
    if found.schema > newest {
        return refuse(format!(
            "its schema has version {}, written by a newer onceward, and this one knows versions up to {newest}; \
             upgrade this program",
            found.schema
        ));
    }
    if found.format != FORMAT {
        return refuse(format!(
            "its records have format {} and this program writes {FORMAT}; use the program that wrote them",
            found.format
        ));
    }
    if found.key_format != i64::from(KEY_FORMAT) {
        return refuse(format!(
            "its keys have encoding {} and this program computes encoding {KEY_FORMAT}, so no duplicate would be \
             recognised; use the program that wrote them, or a new file once its TTL has passed",
            found.key_format
        ));
    }
    Ok(())
}
