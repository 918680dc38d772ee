//! Makes the handler.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::{Error, ErrorKind, GatheredPublisher, Handler, HandlerError, IntoReply, Message, Scope};
use onceward_plugin::{OpenStore, Target};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, Contexts, HandlerProgram, PublishTarget};
use crate::handlers::{
    Environment, ExecHandler, ExecOptions, ExitCodes, LedgerHandler, Program, PublishHandler, RESULT_LIMIT,
    StdoutHandler, WorkerHandler, WorkerOptions,
};
#[cfg(feature = "http")]
use crate::handlers::{HttpHandler, HttpOptions, Statuses};

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
    /// That of `onceward bench`.
    Ledger(LedgerHandler),
}

impl Handler for AnyHandler {
    type Output = Option<Bytes>;

    async fn handle(&self, message: Message) -> Result<Option<Bytes>, HandlerError> {
        let message = crate::telemetry::within_current_span(message);
        match self {
            Self::Exec(handler) => handler.handle(message).await,
            Self::Worker(handler) => handler.handle(message).await,
            #[cfg(feature = "http")]
            Self::Http(handler) => handler.handle(message).await,
            Self::Publish(handler) => handler.handle(message).await.map(IntoReply::into_reply),
            Self::Stdout(handler) => handler.handle(message).await.map(IntoReply::into_reply),
            Self::Ledger(handler) => handler.handle(&message).map(IntoReply::into_reply),
        }
    }
}

impl AnyHandler {
    /// Checks whether its dependencies are available, without giving it a message.
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
            Self::Publish(_) | Self::Stdout(_) | Self::Ledger(_) => Ok(()),
        }
    }

    /// Starts what it keeps running between messages, and waits until that is ready.
    ///
    /// # Errors
    /// Why it cannot be given a message yet.
    pub(crate) async fn start(&self) -> Result<(), HandlerError> {
        match self {
            Self::Worker(handler) => handler.start().await,
            _ => Ok(()),
        }
    }

    /// The part that has to end after the run.
    pub(super) fn rest(&self) -> Rest {
        match self {
            Self::Worker(handler) => Rest(Some(handler.clone())),
            _ => Rest(None),
        }
    }
}

/// The part of a handler that runs between messages; nothing by default.
#[derive(Default)]
pub(crate) struct Rest(Option<WorkerHandler>);

impl Rest {
    /// Ends it within about `limit`.
    pub(crate) async fn end(self, limit: Duration) {
        let Some(workers) = self.0 else { return };
        let killed = workers.shut_down(limit).await;
        if killed > 0 {
            tracing::warn!(
                killed,
                "worker processes did not end after their input was closed and were killed"
            );
        }
    }
}

/// The handler; `None` for `[handler.sql]`, which is made together with its store. It learns by `shutdown` that the program
/// is ending, and fires it where it makes no sense to go on.
///
/// # Errors
/// [`Error`] if it cannot be used as it is configured, or its broker cannot be reached.
pub(crate) async fn open_handler(
    config: &Config,
    scope: &Scope,
    shutdown: &CancellationToken,
) -> Result<Option<AnyHandler>, Error> {
    // A run is dropped after the pipeline's grace: its process has to be gone before.
    let grace = config.pipeline.cancel_grace.get() * 3 / 4;
    // Nothing but a reply asks for a result.
    let kept = (config.policy.on_completed == config::OnCompleted::ReplayResult).then_some(RESULT_LIMIT);
    let handler = match &config.handler {
        config::Handler::Exec(exec) => {
            let mut options = ExecOptions::new(scope.clone(), program(config, exec.program())?);
            let codes = exec.exit.iter().filter_map(|(code, meaning)| Some((code.parse().ok()?, *meaning)));
            options.exit_codes = ExitCodes::new(codes);
            options.keep_output = kept;
            options.grace = grace;
            options.shutdown = shutdown.clone();
            AnyHandler::Exec(ExecHandler::new(options))
        }
        config::Handler::Worker(worker) => {
            let mut options = WorkerOptions::new(scope.clone(), program(config, worker.program())?);
            options.processes = worker.processes;
            options.in_flight = worker.in_flight;
            options.batch = worker.batch;
            options.timeout = worker.timeout.get();
            options.start_timeout = worker.start_timeout.get();
            options.wait_until_ready = worker.ready;
            options.grace = grace;
            options.shutdown = shutdown.clone();
            AnyHandler::Worker(WorkerHandler::new(options))
        }
        #[cfg(feature = "http")]
        config::Handler::Http(http) => {
            let mut options = HttpOptions::new(scope.clone(), http.url.expose());
            options.keep_body = kept;
            options.timeout = http.timeout.get();
            options.batch = http.batch;
            options.keep_alive = http.keep_alive.get();
            options.idle_connections = config.pipeline.concurrency as usize;
            options.headers =
                http.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
            // The check of the configuration has refused other names.
            options.statuses =
                Statuses::new(http.status.iter().map(|(name, meaning)| (name.as_str(), *meaning)))
                    .unwrap_or_default();
            AnyHandler::Http(HttpHandler::new(options)?)
        }
        // Without a reader nothing is left to do.
        config::Handler::Stdout(_) => AnyHandler::Stdout(StdoutHandler::new().closes(shutdown.clone())),
        config::Handler::Sql(_) => return Ok(None),
        #[cfg(not(feature = "http"))]
        config::Handler::Http(_) => {
            let what = "this build of onceward does not have it";
            return Err(Error::new(ErrorKind::Config, "use [handler.http]", what));
        }
        config::Handler::Publish(target) => AnyHandler::Publish(open_target(config, target).await?),
    };
    Ok(Some(handler))
}

/// Messages in a batch, at most: a broker confirms a batch of this size in about the time of a single message.
const PUBLISH_BATCH: usize = 256;

/// Connects to the broker of `[handler.publish.*]`.
async fn open_target(config: &Config, target: &PublishTarget) -> Result<PublishHandler, Error> {
    let Target { publisher, destination } = target.plugin().open(&Contexts::of(config).handler()).await?;
    let publisher = GatheredPublisher::new(publisher, PUBLISH_BATCH, config.handler.timeout().get());
    Ok(PublishHandler::new(Arc::new(publisher), &destination))
}

/// A command runs where its configuration file is, and does not get the variables that the file uses: many are passwords of
/// brokers and stores.
fn program(config: &Config, program: HandlerProgram<'_>) -> Result<Program, Error> {
    let command = program.command.iter().map(|part| part.expose().to_owned()).collect();
    let set = program.env.iter().map(|(name, value)| (name.clone(), value.expose().to_owned()));
    let environment =
        Environment::new().inherit(program.inherit_env.iter().cloned()).withhold(config.variables()).set(set);
    Ok(Program::new(command)?.in_directory(config.directory()).with_environment(environment))
}

/// Has the store compile the statement of `[handler.sql]`; nothing to do for any other handler.
///
/// # Errors
/// [`Error`] if the statement does not compile there, or the store cannot be asked.
pub(crate) async fn check_statement(config: &Config, store: &OpenStore) -> Result<(), Error> {
    let config::Handler::Sql(sql) = &config.handler else { return Ok(()) };
    match &store.statements {
        Some(store) => store.check(&sql.statement).await,
        None => Err(without_transactions()),
    }
}

/// The check of the configuration has refused it before.
pub(super) fn without_transactions() -> Error {
    Error::new(ErrorKind::Config, "use [handler.sql]", "the store has no transactions; use another store")
}
