//! Has Postgres prepare the statement, so that nothing but the statement itself is looked up in the session's `search_path`.
//!
//! sqlx asks the catalogue about types and columns that it does not know, in statements with names that others may have taken:
//! an operator between `integer` and `oid` in a schema of the path would be called. So it is shown none of those. The types of
//! the parameters are found out by `PREPARE`, each down to what its domain is made of; then sqlx prepares an `EXPLAIN` of the
//! statement, which returns text, and executes the statement under what it knows of that.
//!
//! `PREPARE` and `EXPLAIN` take no CALL. That returns no columns of a table; procedures with parameters of domains or other types
//! of the database's own are left to sqlx.

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

use onceward::StatementParameter;

/// What stands before the statement is filled up to this length, for the places that errors name.
pub(super) const BEFORE: usize = 128;

/// The largest number that Postgres gives to a type of its own.
const LAST_BUILT_IN: u32 = 9_999;

/// The type of parameters that are left out, which no place of a statement can have.
const VOID: Oid = Oid(2278);

/// A parameter's type: its name, in capitals, and how sqlx is told of it.
pub(super) type Typed = (String, PgTypeInfo);

/// What a connection knows of the statement.
pub(super) struct Prepared {
    statement: PgStatement,
    pub(super) parameters: Arc<[Typed]>,
}

/// The types of the parameters, as they were found out last. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Types(Arc<Mutex<Option<Arc<[Typed]>>>>);

impl Types {
    /// Has them found out again.
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

/// Prepares the statement. A connection is asked once, and knows it from then on.
pub(super) async fn prepare(conn: &mut PgConnection, sql: &str, types: &Types) -> sqlx::Result<Prepared> {
    let parameters = types.known(conn, sql).await?;
    let declared: Vec<_> = parameters.iter().map(|(_, ty)| ty.clone()).collect();
    if parameters.iter().any(|(_, ty)| !is_built_in(ty)) {
        // No message can fill it, as the caller finds.
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
    let typed = |ty: &PgTypeInfo| (base(ty).name().to_owned(), ty.clone());
    let parameters: Vec<Typed> = match statement.parameters() {
        Some(Either::Left(types)) => types.iter().map(typed).collect(),
        _ => Vec::new(),
    };
    Ok(Prepared { statement, parameters: parameters.into() })
}

/// Executes it, and drops what it returns.
pub(super) async fn execute(
    conn: &mut PgConnection,
    sql: &str,
    prepared: &Prepared,
    arguments: PgArguments,
) -> sqlx::Result<()> {
    let sql = AssertSqlSafe(sql).into_sql_str();
    conn.execute(Known { sql, statement: prepared.statement.clone(), arguments: Some(arguments) })
        .await
        .map(drop)
}

/// A statement under what is known of another one, so that the server is not asked what it returns.
struct Known {
    sql: SqlStr,
    statement: PgStatement,
    arguments: Option<PgArguments>,
}

impl Execute<'_, Postgres> for Known {
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

/// Which of the parameters up to the last one the statement names.
fn named(sql: &str) -> impl Iterator<Item = bool> {
    let is_named = |number: usize| {
        let name = format!("${number}");
        sql.match_indices(&name)
            .any(|(at, _)| !sql[at + name.len()..].starts_with(|c: char| c.is_ascii_digit()))
    };
    let last = (1..=StatementParameter::ALL.len()).rev().find(|number| is_named(*number)).unwrap_or(0);
    (1..=last).map(is_named)
}

/// The types of the parameters, as the places of the statement have them.
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
    // Not as a simple query, which may hold several statements.
    let prepare = query(AssertSqlSafe(format!("{before:BEFORE$}{sql}"))).persistent(false);
    prepare.execute(&mut *conn).await?;
    let rows = query(TYPES).bind(&name).fetch_all(&mut *conn).await?;
    query(AssertSqlSafe(format!("DEALLOCATE {name}"))).persistent(false).execute(conn).await?;
    rows.iter()
        .map(|row| Ok((row.try_get::<String, _>(0)?, PgTypeInfo::with_oid(row.try_get::<Oid, _>(1)?))))
        .collect()
}

/// Of each parameter of a prepared statement what its domain is made of, or itself.
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

/// What a domain is made of.
fn base(mut ty: &PgTypeInfo) -> &PgTypeInfo {
    while let PgTypeKind::Domain(inner) = ty.kind() {
        ty = inner;
    }
    ty
}
