//! Makes the handler.

use std::time::Duration;

use bytes::Bytes;
use onceward::{Error, Handler, HandlerError, IntoReply, Message, Scope};

use super::not_in_this_build;
use super::publisher::{Target, open_publisher};
use super::store::OpenStore;
use crate::config::{self, Address, Config};
use crate::handlers::{
    ExecHandler, ExecOptions, Program, PublishHandler, StdoutHandler, WorkerHandler, WorkerOptions,
};
#[cfg(feature = "http")]
use crate::handlers::{HttpHandler, HttpOptions};

/// How long worker processes may take to end once their input is closed.
const WORKERS_END: Duration = Duration::from_secs(5);

/// Any of the handlers whose completion is written after them. One type for all, so that the pipeline is compiled once.
pub(crate) enum AnyHandler {
    /// `[handler.exec]`.
    Exec(ExecHandler),
    /// `[handler.worker]`.
    Worker(WorkerHandler),
    /// `[handler.http]`.
    #[cfg(feature = "http")]
    Http(HttpHandler),
    /// `[handler.publish.*]`.
    Publish(PublishHandler),
    /// `[handler.stdout]`.
    Stdout(StdoutHandler),
}

impl Handler for AnyHandler {
    type Output = Option<Bytes>;

    async fn handle(&self, message: Message) -> Result<Option<Bytes>, HandlerError> {
        match self {
            Self::Exec(handler) => handler.handle(message).await,
            Self::Worker(handler) => handler.handle(message).await,
            #[cfg(feature = "http")]
            Self::Http(handler) => handler.handle(message).await,
            Self::Publish(handler) => handler.handle(message).await.map(IntoReply::into_reply),
            Self::Stdout(handler) => handler.handle(message).await.map(IntoReply::into_reply),
        }
    }
}

impl AnyHandler {
    /// Looks whether what it needs is there, without giving it a message.
    ///
    /// # Errors
    /// [`Error`] saying what to correct.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        match self {
            Self::Exec(handler) => handler.check(),
            Self::Worker(handler) => handler.check(),
            #[cfg(feature = "http")]
            Self::Http(handler) => handler.check().await,
            // Its broker and destination have been looked at when it was opened.
            Self::Publish(_) | Self::Stdout(_) => Ok(()),
        }
    }

    /// What has to end after the run.
    pub(super) fn rest(&self) -> Rest {
        match self {
            Self::Worker(handler) => Rest(Some(handler.clone())),
            _ => Rest(None),
        }
    }
}

/// What a handler leaves running between messages; nothing by default.
#[derive(Default)]
pub(crate) struct Rest(Option<WorkerHandler>);

impl Rest {
    /// Ends it. After a `forced` end nothing is waited for.
    pub(crate) async fn end(self, forced: bool) {
        let Some(workers) = self.0 else { return };
        let killed = workers.shut_down(if forced { Duration::ZERO } else { WORKERS_END }).await;
        if killed > 0 {
            tracing::warn!(
                killed,
                "worker processes did not end after their input was closed and were killed"
            );
        }
    }
}

/// The handler; `None` for `[handler.sql]`, which is made together with its store.
///
/// # Errors
/// [`Error`] if it cannot be used as it is configured, or its broker cannot be reached.
pub(crate) async fn open_handler(config: &Config, scope: &Scope) -> Result<Option<AnyHandler>, Error> {
    let handler = match &config.handler {
        config::Handler::Exec(exec) => AnyHandler::Exec(ExecHandler::new(ExecOptions {
            scope: scope.clone(),
            program: program(config, &exec.command)?,
            keep_output: None,
        })),
        config::Handler::Worker(worker) => {
            let mut options = WorkerOptions::new(scope.clone(), program(config, &worker.command)?);
            options.processes = worker.processes;
            AnyHandler::Worker(WorkerHandler::new(options))
        }
        #[cfg(feature = "http")]
        config::Handler::Http(http) => {
            let mut options = HttpOptions::new(scope.clone(), http.url.expose());
            options.timeout = http.timeout.get();
            options.idle_connections = config.pipeline.concurrency as usize;
            options.headers =
                http.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
            AnyHandler::Http(HttpHandler::new(options)?)
        }
        config::Handler::Stdout(_) => AnyHandler::Stdout(StdoutHandler::new()),
        config::Handler::Sql(_) => return Ok(None),
        #[cfg(not(feature = "http"))]
        config::Handler::Http(_) => return Err(not_in_this_build("handler.http")),
        config::Handler::Publish(target) => {
            let Target { publisher, destination } = open_publisher(config, target).await?;
            AnyHandler::Publish(PublishHandler::new(publisher, &destination))
        }
    };
    Ok(Some(handler))
}

/// A command runs where its configuration file is.
fn program(config: &Config, command: &[Address]) -> Result<Program, Error> {
    let command = command.iter().map(|part| part.expose().to_owned()).collect();
    Ok(Program::new(command)?.in_directory(config.directory()))
}

/// Has the store compile the statement of `[handler.sql]`; nothing to do for any other handler.
///
/// # Errors
/// [`Error`] if the statement does not compile there, or the store cannot be asked.
pub(crate) async fn check_statement(config: &Config, store: &OpenStore) -> Result<(), Error> {
    let config::Handler::Sql(sql) = &config.handler else { return Ok(()) };
    match &store.inbox {
        #[cfg(feature = "sqlite")]
        Some(super::store::Inbox::Sqlite(store)) => {
            crate::handlers::SqlHandler::new(sql.statement.as_str())?.check(store).await
        }
        #[cfg(feature = "postgres")]
        Some(super::store::Inbox::Postgres(store)) => {
            crate::handlers::PgSqlHandler::new(sql.statement.as_str())?.check(store).await
        }
        _ => {
            let _ = sql;
            Err(not_in_this_build("handler.sql"))
        }
    }
}
