//! Prepares a handler's statement without resolving any other name in the session's `search_path`.
//!
//! sqlx queries the catalogue about unknown types and columns, with unqualified names that other roles may shadow: an operator
//! between `integer` and `oid` in a schema of the path would be called. This module avoids these queries. `PREPARE` infers
//! the types of the parameters, which are resolved to the base types of domains; then sqlx prepares an `EXPLAIN` of the
//! statement, which returns text, and executes the statement with the metadata of that.
//!
//! `PREPARE` and `EXPLAIN` do not accept CALL. It returns no columns of a table; for procedures with parameters of domains or
//! user-defined types, sqlx queries the catalogue.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArguments, PgConnection, PgStatement, PgTypeInfo, PgTypeKind, Postgres};
use sqlx::{
    AssertSqlSafe, Either, Execute, Executor as _, Row as _, SqlSafeStr as _, SqlStr, Statement as _,
    TypeInfo as _, query,
};

use onceward::adapter::StatementParameter;

/// The text before the statement is padded to this length, so that error positions can be corrected.
pub(super) const BEFORE: usize = 128;

/// The largest OID of a built-in type.
const LAST_BUILT_IN: u32 = 9_999;

/// The type declared for unused parameters; no expression can have it.
const VOID: Oid = Oid(2278);

/// A parameter's type: its name in capitals, and sqlx's type.
pub(super) type Typed = (String, PgTypeInfo);

/// A statement prepared on a connection.
pub(super) struct Prepared {
    statement: PgStatement,
    pub(super) parameters: Arc<[Typed]>,
}

/// The inferred types of the parameters. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Types(Arc<Mutex<Option<Arc<[Typed]>>>>);

impl Types {
    /// Discards them, so that they are inferred again.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn known(&self, conn: &mut PgConnection, sql: &str) -> sqlx::Result<Arc<[Typed]>> {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(known);
        }
        let found: Arc<[Typed]> = infer(conn, sql).await?.into();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&found));
        Ok(found)
    }
}

/// Prepares the statement, once per connection.
pub(super) async fn prepare(conn: &mut PgConnection, sql: &str, types: &Types) -> sqlx::Result<Prepared> {
    let parameters = types.known(conn, sql).await?;
    let declared: Vec<_> = parameters.iter().map(|(_, ty)| ty.clone()).collect();
    if parameters.iter().any(|(_, ty)| !is_built_in(ty)) {
        // No message can bind it, which the caller reports.
        let statement = conn.prepare("SELECT 1".into_sql_str()).await?;
        return Ok(Prepared { statement, parameters });
    }
    let explain = AssertSqlSafe(format!("{:BEFORE$}{sql}", "EXPLAIN")).into_sql_str();
    let prepared = conn.prepare_with(explain, &declared).await;
    if prepared.is_err() {
        types.forget();
    }
    Ok(Prepared { statement: prepared?, parameters })
}

/// Prepares a CALL.
pub(super) async fn prepare_call(conn: &mut PgConnection, sql: &str) -> sqlx::Result<Prepared> {
    let declared: Vec<_> =
        named(sql).map(|is_named| PgTypeInfo::with_oid(if is_named { Oid(0) } else { VOID })).collect();
    let statement = conn.prepare_with(AssertSqlSafe(sql).into_sql_str(), &declared).await?;
    let typed = |ty: &PgTypeInfo| (base_type(ty).name().to_owned(), ty.clone());
    let parameters: Vec<Typed> = match statement.parameters() {
        Some(Either::Left(types)) => types.iter().map(typed).collect(),
        _ => Vec::new(),
    };
    Ok(Prepared { statement, parameters: parameters.into() })
}

/// Executes the statement, and drops the rows it returns.
pub(super) async fn execute(
    conn: &mut PgConnection,
    sql: &str,
    prepared: &Prepared,
    arguments: PgArguments,
) -> sqlx::Result<()> {
    let sql = AssertSqlSafe(sql).into_sql_str();
    conn.execute(WithMetadata { sql, statement: prepared.statement.clone(), arguments: Some(arguments) })
        .await
        .map(drop)
}

/// A statement with the metadata of another one, so that sqlx does not query its columns.
struct WithMetadata {
    sql: SqlStr,
    statement: PgStatement,
    arguments: Option<PgArguments>,
}

impl Execute<'_, Postgres> for WithMetadata {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        Some(&self.statement)
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        true
    }
}

/// For each parameter up to the last one used, whether the statement uses it.
fn named(sql: &str) -> impl Iterator<Item = bool> {
    let is_named = |number: usize| {
        let name = format!("${number}");
        sql.match_indices(&name)
            .any(|(at, _)| !sql[at + name.len()..].starts_with(|c: char| c.is_ascii_digit()))
    };
    let last = (1..=StatementParameter::ALL.len()).rev().find(|number| is_named(*number)).unwrap_or(0);
    (1..=last).map(is_named)
}

/// Infers the types of the parameters from their places in the statement.
async fn infer(conn: &mut PgConnection, sql: &str) -> sqlx::Result<Vec<Typed>> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("onceward_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut before = format!("PREPARE {name}");
    for (n, is_named) in named(sql).enumerate() {
        let ty = if is_named { "unknown" } else { "void" };
        let _ = write!(before, "{}pg_catalog.{ty}", if n == 0 { " (" } else { "," });
    }
    if before.contains('(') {
        before.push(')');
    }
    before.push_str(" AS");
    // Not as a simple query, which may contain several statements.
    let prepare = query(AssertSqlSafe(format!("{before:BEFORE$}{sql}"))).persistent(false);
    prepare.execute(&mut *conn).await?;
    let rows = query(TYPES).bind(&name).fetch_all(&mut *conn).await?;
    query(AssertSqlSafe(format!("DEALLOCATE {name}"))).persistent(false).execute(conn).await?;
    rows.iter()
        .map(|row| Ok((row.try_get::<String, _>(0)?, PgTypeInfo::with_oid(row.try_get::<Oid, _>(1)?))))
        .collect()
}

/// SQL that returns the type of each parameter of a prepared statement, with domains resolved to their base types.
const TYPES: &str = "WITH RECURSIVE given AS (\
      SELECT u.place, u.type::pg_catalog.oid AS type FROM pg_catalog.pg_prepared_statements AS p, \
        pg_catalog.unnest(p.parameter_types) WITH ORDINALITY AS u (type, place) WHERE p.name OPERATOR(pg_catalog.=) $1 \
      UNION ALL SELECT g.place, t.typbasetype FROM given AS g \
        JOIN pg_catalog.pg_type AS t ON t.oid OPERATOR(pg_catalog.=) g.type WHERE t.typtype OPERATOR(pg_catalog.=) 'd') \
    SELECT CASE WHEN t.oid OPERATOR(pg_catalog.=) 1042::pg_catalog.oid THEN 'CHAR' \
        WHEN t.oid OPERATOR(pg_catalog.<) 10000::pg_catalog.oid THEN pg_catalog.upper(t.typname::pg_catalog.text) \
        ELSE pg_catalog.format_type(t.oid, NULL) END, t.oid \
    FROM given AS g JOIN pg_catalog.pg_type AS t ON t.oid OPERATOR(pg_catalog.=) g.type \
    WHERE t.typtype OPERATOR(pg_catalog.<>) 'd' ORDER BY g.place";

fn is_built_in(ty: &PgTypeInfo) -> bool {
    ty.oid().is_some_and(|oid| oid.0 <= LAST_BUILT_IN)
}

/// The base type of a domain; any other type itself.
fn base_type(mut ty: &PgTypeInfo) -> &PgTypeInfo {
    while let PgTypeKind::Domain(inner) = ty.kind() {
        ty = inner;
    }
    ty
}
