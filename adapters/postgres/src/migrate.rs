//! Applies migrations of the schema, and checks its version before use.

use onceward::adapter::KEY_FORMAT;
use onceward::{Error, ErrorKind};
use onceward_migrations::{latest, postgres};
use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection, Row, query};

use crate::error::{is_already_created, store_error};
use crate::schema_ownership::SchemaOwnership;

/// The version of the records themselves, apart from the columns that hold them.
const FORMAT: i64 = 1;
pub(crate) const MIGRATE: &str = "migrate the Postgres store";
pub(crate) const USE: &str = "use the Postgres store";

/// The versions that the schema records about itself.
struct PgSchemaState {
    /// 0: no migrations were applied.
    version: u32,
    /// The oldest version that a program must support; without one, `version` itself.
    needs: Option<i64>,
    format: i64,
    key_format: i64,
    /// `None`: the schema does not exist.
    ownership: Option<SchemaOwnership>,
}

/// The schema's version, after checking that this program may use it. `schema` is a valid identifier.
pub(crate) async fn check(conn: &mut PgConnection, schema: &str) -> Result<u32, Error> {
    let found = read_state(conn, schema, "read the schema's version").await?;
    check_compatible(&found, schema)?;
    let wanted = latest(postgres().0);
    if found.version < wanted {
        let context = match found.version {
            0 => format!("there is no schema {schema} of onceward in the database; run its migrations first"),
            version => format!(
                "schema {schema} has version {version} and this program needs {wanted}; run onceward's migrations first"
            ),
        };
        return Err(Error::new(ErrorKind::Config, USE, context));
    }
    Ok(found.version)
}

/// The number of migrations that [`migrate`] would apply.
pub(crate) async fn missing(conn: &mut PgConnection, schema: &str) -> Result<u32, Error> {
    let found = read_state(conn, schema, "read the schema's version").await?;
    check_compatible(&found, schema)?;
    Ok(latest(postgres().0).saturating_sub(found.version))
}

/// Applies pending migrations in one transaction, and returns their number. Several programs may do so concurrently.
pub(crate) async fn migrate(conn: &mut PgConnection, schema: &str) -> Result<u32, Error> {
    let mut left = TRIES;
    loop {
        left -= 1;
        match migrate_once(conn, schema).await {
            // Another program has created the same concurrently.
            Err(MigrationError::Sql(error)) if left > 0 && is_already_created(&error) => {}
            Err(MigrationError::Sql(error)) => return Err(store_error(MIGRATE, error)),
            Err(MigrationError::Refused(error)) => return Err(error),
            Ok(applied) => return Ok(applied),
        }
    }
}

/// Attempts while other programs create the schema concurrently.
const TRIES: u32 = 3;

enum MigrationError {
    Sql(sqlx::Error),
    Refused(Error),
}

impl From<sqlx::Error> for MigrationError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for MigrationError {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

async fn migrate_once(conn: &mut PgConnection, schema: &str) -> Result<u32, MigrationError> {
    let found = read_state(conn, schema, MIGRATE).await?;
    check_compatible(&found, schema)?;
    if found.version >= latest(postgres().0) {
        return Ok(0);
    }
    let mut transaction = conn.begin().await?;
    if let Some(ownership) = &found.ownership {
        ownership.refuse_untrusted(MIGRATE, schema)?;
    }
    if found.version > 0 {
        // Other migrations wait here, and so does the creation of triggers on the table; readers do not.
        let lock = format!("LOCK TABLE \"{schema}\".migrations IN SHARE ROW EXCLUSIVE MODE");
        transaction.execute(AssertSqlSafe(lock)).await?;
    }
    // Another program may have migrated while this one waited for the lock.
    let found = read_state(&mut transaction, schema, MIGRATE).await?;
    check_compatible(&found, schema)?;
    if let Some(ownership) = &found.ownership {
        ownership.refuse_untrusted(MIGRATE, schema)?;
    }
    let applied = apply(&mut transaction, schema, &found).await?;
    transaction.commit().await?;
    Ok(applied)
}

/// Creates what is missing. It fails if an object of such a name exists already.
async fn apply(conn: &mut PgConnection, schema: &str, found: &PgSchemaState) -> Result<u32, sqlx::Error> {
    if found.ownership.is_none() {
        conn.execute(AssertSqlSafe(format!("CREATE SCHEMA \"{schema}\""))).await?;
    }
    if found.version == 0 {
        let table = format!(
            "CREATE TABLE \"{schema}\".migrations (version integer NOT NULL PRIMARY KEY, name text NOT NULL, \
             applied_at timestamptz NOT NULL DEFAULT now())"
        );
        conn.execute(AssertSqlSafe(table)).await?;
    }
    let mut applied = 0;
    let (steps, needs) = postgres();
    for step in steps.iter().filter(|step| step.version > found.version) {
        sqlx::raw_sql(AssertSqlSafe(step.sql.replace("@schema@", schema))).execute(&mut *conn).await?;
        let note = format!("INSERT INTO \"{schema}\".migrations (version, name) VALUES ($1, $2)");
        query(AssertSqlSafe(note))
            .bind(i32::try_from(step.version).unwrap_or(i32::MAX))
            .bind(step.name)
            .execute(&mut *conn)
            .await?;
        applied += 1;
    }
    for (name, value) in [("format", FORMAT), ("key_format", i64::from(KEY_FORMAT)), ("fence_floor", 0)] {
        let sql =
            format!("INSERT INTO \"{schema}\".meta (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        query(AssertSqlSafe(sql)).bind(name).bind(value).execute(&mut *conn).await?;
    }
    if applied > 0 {
        let sql = format!(
            "INSERT INTO \"{schema}\".meta AS meta (name, value) VALUES ('needs', $1) ON CONFLICT (name) DO UPDATE \
             SET value = greatest(meta.value, excluded.value)"
        );
        query(AssertSqlSafe(sql)).bind(i64::from(needs)).execute(&mut *conn).await?;
    }
    Ok(applied)
}

/// Reads the state of the schema, unless it contains objects of other owners.
async fn read_state(
    conn: &mut PgConnection,
    schema: &str,
    operation: &'static str,
) -> Result<PgSchemaState, Error> {
    let failed = |error| store_error(operation, error);
    let ownership = SchemaOwnership::read(conn, schema).await.map_err(failed)?;
    if let Some(ownership) = &ownership {
        ownership.refuse_strange(operation, schema)?;
    }
    let mut found = read(conn, schema).await.map_err(failed)?;
    found.ownership = ownership;
    Ok(found)
}

async fn read(conn: &mut PgConnection, schema: &str) -> Result<PgSchemaState, sqlx::Error> {
    let mut found = PgSchemaState {
        version: 0,
        needs: None,
        format: FORMAT,
        key_format: i64::from(KEY_FORMAT),
        ownership: None,
    };
    // From the catalogue, which needs no right on the schema.
    let table = query(
        "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = $1 AND c.relname = 'migrations'",
    )
    .bind(schema);
    if table.fetch_optional(&mut *conn).await?.is_none() {
        return Ok(found);
    }
    let version = format!("SELECT coalesce(max(version), 0) FROM \"{schema}\".migrations");
    let row = conn.fetch_one(AssertSqlSafe(version)).await?;
    found.version = u32::try_from(row.try_get::<i32, _>(0)?).unwrap_or(u32::MAX);
    if found.version == 0 {
        return Ok(found);
    }
    let meta = format!("SELECT name, value FROM \"{schema}\".meta");
    for row in conn.fetch_all(AssertSqlSafe(meta)).await? {
        match row.try_get(0)? {
            "format" => found.format = row.try_get(1)?,
            "key_format" => found.key_format = row.try_get(1)?,
            "needs" => found.needs = Some(row.try_get(1)?),
            _ => {}
        }
    }
    Ok(found)
}

fn check_compatible(found: &PgSchemaState, schema: &str) -> Result<(), Error> {
    let refuse = |context: String| Err(Error::new(ErrorKind::Config, USE, context));
    let newest = latest(postgres().0);
    if found.version > newest && found.needs.is_none_or(|needs| needs > i64::from(newest)) {
        return refuse(format!(
            "schema {schema} has version {}, written by a newer onceward, and this one knows versions up to {newest}; \
             upgrade this program",
            found.version
        ));
    }
    if found.format != FORMAT {
        return refuse(format!(
            "the records in schema {schema} have format {} and this program writes {FORMAT}; use the program that \
             wrote them",
            found.format
        ));
    }
    if found.key_format != i64::from(KEY_FORMAT) {
        return refuse(format!(
            "the keys in schema {schema} have encoding {} and this program computes encoding {KEY_FORMAT}, so no \
             duplicate would be recognised; use the program that wrote them, or another schema once its TTL has passed",
            found.key_format
        ));
    }
    Ok(())
}
