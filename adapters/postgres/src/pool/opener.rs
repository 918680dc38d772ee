//! Opens connections, and makes each session one that the store can rely on: [`SessionOpener`].

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onceward::Error;
use sqlx::postgres::{PgConnectOptions, PgTypeInfo};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, PgConnection, Row as _, SqlSafeStr as _};
use tokio::time::timeout;

use crate::guard::catch_panic;

/// Answers the password that holds now.
pub(crate) type PasswordSource = Arc<dyn Fn() -> Result<String, Error> + Send + Sync>;

/// Opens connections. Settings are made after connecting, since poolers reject most startup parameters.
#[derive(Clone)]
pub(crate) struct SessionOpener {
    options: PgConnectOptions,
    password: Option<PasswordSource>,
    /// Settings of each session, in the server's own words.
    settings: Arc<[(&'static str, String)]>,
    /// Statements that are prepared with the opening, so that their first use costs one reply.
    prepared: Arc<[(String, Vec<PgTypeInfo>)]>,
    /// How long an opening may take in all.
    budget: Duration,
    shared: Arc<OpenerState>,
}

#[derive(Default)]
struct OpenerState {
    /// The last password that could be read.
    last: Mutex<Option<String>>,
    narrow: AtomicBool,
    /// The server's processes of the sessions that are open.
    pids: Mutex<HashSet<i32>>,
}

/// An open session.
pub(crate) struct Session {
    pub(crate) conn: PgConnection,
    /// The server's process.
    pub(crate) pid: i32,
    _known: RegisteredPid,
}

/// Removes its number when the session ends.
struct RegisteredPid(Arc<OpenerState>, i32);

impl Drop for RegisteredPid {
    fn drop(&mut self) {
        self.0.pids.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl SessionOpener {
    pub(crate) fn new(
        options: PgConnectOptions,
        password: Option<PasswordSource>,
        settings: Vec<(&'static str, String)>,
        budget: Duration,
    ) -> Self {
        let options = options.extra_float_digits(None).disable_statement_logging();
        Self {
            options,
            password,
            settings: settings.into(),
            prepared: Arc::new([]),
            budget,
            shared: Arc::default(),
        }
    }

    /// With statements that each connection prepares when it is opened.
    pub(crate) fn preparing(mut self, statements: Vec<(String, Vec<PgTypeInfo>)>) -> Self {
        self.prepared = statements.into();
        self
    }

    /// Whether the database's encoding was seen to lack characters.
    pub(crate) fn is_narrow(&self) -> bool {
        self.shared.narrow.load(Ordering::Relaxed)
    }

    /// The options for one connection, with the password that holds now.
    pub(crate) async fn options(&self) -> Result<PgConnectOptions, sqlx::Error> {
        let Some(source) = self.password.clone() else { return Ok(self.options.clone()) };
        // It may read a file.
        let read = tokio::task::spawn_blocking(move || source()).await;
        let mut last = self.shared.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(Ok(password)) => *last = Some(password),
            Ok(Err(error)) if last.is_none() => return Err(sqlx::Error::Configuration(Box::new(error))),
            // A file that is being replaced: the last password may still hold, and the server tells if not.
            Ok(Err(error)) => tracing::warn!(%error, "the password cannot be read; the last one is used"),
            Err(_) => return Err(sqlx::Error::WorkerCrashed),
        }
        Ok(self.options.clone().password(last.as_deref().unwrap_or_default()))
    }

    /// A new session.
    ///
    /// # Errors
    /// `PoolTimedOut` past the budget; `Configuration` for a pooler that shares sessions between transactions, or a server
    /// that ignores a setting; else what the server says.
    pub(crate) async fn open(&self) -> Result<Session, sqlx::Error> {
        timeout(self.budget, catch_panic(self.open_patiently()))
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn open_patiently(&self) -> Result<Session, sqlx::Error> {
        let mut conn = self.options().await?.connect().await?;
        let rows = sqlx::raw_sql(AssertSqlSafe(self.set_up())).fetch_all(&mut conn).await?;
        let refused = |what: String| Err(sqlx::Error::Configuration(what.into()));
        let Some(row) = rows.last() else { return refused("the server answers without a row".to_owned()) };
        let pid = row.try_get_unchecked::<i32, _>(0)?;
        let narrow = !matches!(row.try_get_unchecked::<&str, _>(1)?, "UTF8" | "SQL_ASCII");
        self.shared.narrow.store(narrow, Ordering::Relaxed);
        let fresh = self.shared.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        if !fresh {
            return refused(format!(
                "two open connections have the same server process ({pid}): a pooler shares it between \
                 transactions; use its session mode, or connect to the server itself"
            ));
        }
        let known = RegisteredPid(Arc::clone(&self.shared), pid);
        for (sql, types) in self.prepared.iter() {
            conn.prepare_with(AssertSqlSafe(sql.as_str()).into_sql_str(), types).await?;
        }
        Ok(Session { conn, pid, _known: known })
    }

    /// Makes all settings, and asks what the session is, in one message. Settings that only newer servers have are made
    /// where they exist.
    fn set_up(&self) -> String {
        let mut sql = "SELECT 1".to_owned();
        for (name, value) in self.settings.iter() {
            let _ = write!(
                sql,
                ", CASE WHEN pg_catalog.current_setting('{name}', true) IS NOT NULL \
                 THEN pg_catalog.set_config('{name}', '{value}', false) END"
            );
        }
        sql.push_str("; SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('server_encoding')");
        sql
    }
}
