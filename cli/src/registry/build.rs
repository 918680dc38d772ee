//! Puts the parts together: a pipeline whose types are no longer known, and is ready to run.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use onceward::pipeline::Guarantee;
use onceward::telemetry::Counters;
use onceward::{
    Consumer, DeadLetters, Error, Handler, Pipeline, PipelineBuilder, PipelineConfig, Scope, SharedStore,
    Summary,
};
use tokio_util::sync::CancellationToken;

use super::handler::{AnyHandler, Rest};
use super::not_in_this_build;
use super::own_headers::own_headers;
use super::settings::{key_extractor, pipeline_config};
use super::store::OpenStore;
use crate::config::{self, Config};

type Start = Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, Result<Summary, Error>>>;

/// A pipeline that is ready to run.
#[must_use = "a pipeline does nothing until it runs"]
pub(crate) struct Ready {
    /// What it counts, also while it runs.
    pub(crate) counters: Arc<Counters>,
    /// The level it gives, by its parts.
    pub(crate) guarantee: &'static str,
    /// What the handler leaves running after the run.
    pub(crate) rest: Rest,
    start: Start,
}

impl Ready {
    fn new<G: Guarantee>(pipeline: Pipeline<G>, rest: Rest) -> Self {
        Self {
            counters: pipeline.counters(),
            guarantee: G::NAME,
            rest,
            start: Box::new(move |shutdown| Box::pin(pipeline.run(shutdown))),
        }
    }

    /// Takes the pipeline itself: it runs until the source is at its end or the token fires.
    pub(crate) fn start(
        self,
        shutdown: CancellationToken,
    ) -> (BoxFuture<'static, Result<Summary, Error>>, Rest) {
        ((self.start)(shutdown), self.rest)
    }
}

/// Builds the pipeline of `config`.
///
/// # Errors
/// [`Error`] naming the values that disagree, or the part that cannot be used as it is configured.
pub(crate) async fn build(
    config: &Config,
    scope: &Scope,
    source: Box<dyn Consumer>,
    store: &OpenStore,
    handler: Option<AnyHandler>,
    dead_letters: Option<DeadLetters>,
    until_empty: bool,
) -> Result<Ready, Error> {
    match handler {
        Some(handler) => {
            let rest = handler.rest();
            let builder = with_settings(
                Pipeline::builder(scope.clone(), source, Arc::clone(&store.store)),
                config,
                scope,
                dead_letters,
                until_empty,
            )?;
            plain(builder, handler, rest)
        }
        None => transactional(config, scope, source, store, dead_letters, until_empty),
    }
}

fn plain<S: SharedStore>(
    builder: PipelineBuilder<S>,
    handler: impl Handler,
    rest: Rest,
) -> Result<Ready, Error> {
    Ok(Ready::new(builder.handler(handler)?, rest))
}

/// The statement runs in the store's own transaction, so both have to be known by type.
fn transactional(
    config: &Config,
    scope: &Scope,
    source: Box<dyn Consumer>,
    store: &OpenStore,
    dead_letters: Option<DeadLetters>,
    until_empty: bool,
) -> Result<Ready, Error> {
    let config::Handler::Sql(sql) = &config.handler else {
        return Err(not_in_this_build(&config.handler.path()));
    };
    match &store.inbox {
        #[cfg(feature = "sqlite")]
        Some(super::store::Inbox::Sqlite(store)) => {
            let handler = onceward_sqlite::SqliteSqlHandler::new(sql.statement.as_str())?;
            let builder = Pipeline::builder(scope.clone(), source, Arc::clone(store));
            let builder = with_settings(builder, config, scope, dead_letters, until_empty)?;
            Ok(Ready::new(builder.transactional_handler(handler)?, Rest::default()))
        }
        #[cfg(feature = "postgres")]
        Some(super::store::Inbox::Postgres(store)) => {
            let handler = onceward_postgres::PgSqlHandler::new(sql.statement.as_str())?;
            let builder = Pipeline::builder(scope.clone(), source, Arc::clone(store));
            let builder = with_settings(builder, config, scope, dead_letters, until_empty)?;
            Ok(Ready::new(builder.transactional_handler(handler)?, Rest::default()))
        }
        _ => {
            let _ = (sql, scope, source, dead_letters, until_empty);
            Err(not_in_this_build("handler.sql"))
        }
    }
}

fn with_settings<S: SharedStore>(
    builder: PipelineBuilder<S>,
    config: &Config,
    scope: &Scope,
    dead_letters: Option<DeadLetters>,
    until_empty: bool,
) -> Result<PipelineBuilder<S>, Error> {
    let settings =
        PipelineConfig { own_headers: own_headers(config)?, ..pipeline_config(config, until_empty) };
    let builder = builder.key_extractor(key_extractor(config, scope)).config(settings);
    Ok(match dead_letters {
        Some(dead_letters) => builder.dead_letters(dead_letters),
        None => builder,
    })
}
