//! Opens sessions with defined settings: [`SessionOpener`].

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgTypeInfo};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, PgConnection, Row as _, SqlSafeStr as _};
use tokio::time::timeout;

use crate::endpoint::PasswordProvider;
use crate::guard::catch_panic;

/// Opens sessions. Settings are made after connecting, since poolers reject most startup parameters.
#[derive(Clone)]
pub(crate) struct SessionOpener {
    options: PgConnectOptions,
    password: Option<PasswordProvider>,
    /// The settings of each session: names and values.
    settings: Arc<[(&'static str, String)]>,
    /// Statements prepared while opening, so that their first use takes one round trip.
    prepared: Arc<[(String, Vec<PgTypeInfo>)]>,
    /// The time limit of opening a session.
    budget: Duration,
    state: Arc<OpenerState>,
}

#[derive(Default)]
struct OpenerState {
    /// The last password that the source returned.
    last_password: Mutex<Option<String>>,
    /// Whether the database's encoding lacks characters.
    narrow: AtomicBool,
    /// The server processes of open sessions.
    pids: Mutex<HashSet<i32>>,
}

/// An open session.
pub(crate) struct Session {
    pub(crate) conn: PgConnection,
    /// The id of its server process.
    pub(crate) pid: i32,
    _known: RegisteredPid,
}

/// Unregisters the process of a session when it ends.
struct RegisteredPid(Arc<OpenerState>, i32);

impl Drop for RegisteredPid {
    fn drop(&mut self) {
        self.0.pids.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl SessionOpener {
    pub(crate) fn new(
        options: PgConnectOptions,
        password: Option<PasswordProvider>,
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
            state: Arc::default(),
        }
    }

    /// With statements that each session prepares when it is opened.
    pub(crate) fn preparing(mut self, statements: Vec<(String, Vec<PgTypeInfo>)>) -> Self {
        self.prepared = statements.into();
        self
    }

    /// True if the encoding of the database cannot represent every character.
    pub(crate) fn is_narrow(&self) -> bool {
        self.state.narrow.load(Ordering::Relaxed)
    }

    /// The options of one connection, with the current password.
    pub(crate) async fn options(&self) -> Result<PgConnectOptions, sqlx::Error> {
        let Some(source) = self.password.clone() else { return Ok(self.options.clone()) };
        // It may read a file.
        let read = tokio::task::spawn_blocking(move || source()).await;
        let mut last = self.state.last_password.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(Ok(password)) => *last = Some(password),
            Ok(Err(error)) if last.is_none() => return Err(sqlx::Error::Configuration(Box::new(error))),
            // A file that is being replaced: the last password may still be valid.
            Ok(Err(error)) => tracing::warn!(%error, "password not read; the last one is used"),
            Err(_) => return Err(sqlx::Error::WorkerCrashed),
        }
        Ok(self.options.clone().password(last.as_deref().unwrap_or_default()))
    }

    /// Opens a session.
    ///
    /// # Errors
    /// `PoolTimedOut` after the time limit; `Configuration` for a pooler that shares sessions between transactions, or a failed
    /// password source; otherwise the server's error.
    pub(crate) async fn open(&self) -> Result<Session, sqlx::Error> {
        timeout(self.budget, catch_panic(self.open_patiently()))
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn open_patiently(&self) -> Result<Session, sqlx::Error> {
        let mut conn = self.options().await?.connect().await?;
        let rows = sqlx::raw_sql(AssertSqlSafe(self.set_up())).fetch_all(&mut conn).await?;
        let refused = |what: String| Err(sqlx::Error::Configuration(what.into()));
        let Some(row) = rows.last() else { return refused("the server answered without a row".to_owned()) };
        let pid = row.try_get_unchecked::<i32, _>(0)?;
        let narrow = !matches!(row.try_get_unchecked::<&str, _>(1)?, "UTF8" | "SQL_ASCII");
        self.state.narrow.store(narrow, Ordering::Relaxed);
        let fresh = self.state.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        if !fresh {
            return refused(format!(
                "two open connections have the same server process ({pid}): a pooler shares it between \
                 transactions; use its session mode, or connect to the server itself"
            ));
        }
        let known = RegisteredPid(Arc::clone(&self.state), pid);
        for (sql, types) in self.prepared.iter() {
            conn.prepare_with(AssertSqlSafe(sql.as_str()).into_sql_str(), types).await?;
        }
        Ok(Session { conn, pid, _known: known })
    }

    /// SQL that makes all settings and reads the process id and the encoding, in one message. Settings that the server does not
    /// have are skipped.
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
