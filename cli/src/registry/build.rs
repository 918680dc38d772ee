//! Puts the parts together: a pipeline of any type, ready to run.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use onceward::adapter::{Consumer, Replies};
use onceward::telemetry::{Counters, Observer};
use onceward::{DeadLetters, Error, ErrorKind, PipelineConfig, Scope, Summary};
use onceward_plugin::{OpenStore, PipelineParts, ReadyPipeline};
use tokio_util::sync::CancellationToken;

use super::handler::{AnyHandler, Rest, without_transactions};
use super::own_headers::own_headers;
use crate::config::{Config, Handler, key_extractor, pipeline_config};

/// A pipeline that is ready to run, and what its handler leaves running.
#[must_use = "a pipeline does nothing until it runs"]
pub(crate) struct Ready {
    pipeline: ReadyPipeline,
    /// The part of the handler that still runs after the run.
    rest: Rest,
}

impl Ready {
    /// What it counts, also while it runs.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.pipeline.counters)
    }

    /// The guarantee that its parts give.
    pub(crate) fn guarantee(&self) -> &'static str {
        self.pipeline.guarantee
    }

    /// Runs the pipeline until the source ends or the token is cancelled.
    pub(crate) fn start(
        self,
        shutdown: CancellationToken,
    ) -> (BoxFuture<'static, Result<Summary, Error>>, Rest) {
        (self.pipeline.start(shutdown), self.rest)
    }
}

/// The parts of a pipeline that were opened or made before.
pub(crate) struct BuildParts<'s> {
    pub(crate) source: Box<dyn Consumer>,
    pub(crate) store: &'s OpenStore,
    /// `None` for a handler that is made together with its store.
    pub(crate) handler: Option<AnyHandler>,
    pub(crate) dead_letters: Option<DeadLetters>,
    pub(crate) replies: Option<Arc<dyn Replies>>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

/// Builds the pipeline of `config`.
///
/// # Errors
/// [`Error`] naming the values that disagree, or the part that cannot be used as it is configured.
pub(crate) async fn build(
    config: &Config,
    scope: &Scope,
    parts: BuildParts<'_>,
    until_empty: bool,
) -> Result<Ready, Error> {
    let BuildParts { source, store, handler, dead_letters, replies, observer } = parts;
    let own_headers = own_headers(config)?;
    let parts = PipelineParts {
        scope: scope.clone(),
        source,
        keys: key_extractor(config, scope),
        config: PipelineConfig { own_headers, ..pipeline_config(config, until_empty) },
        dead_letters,
        replies,
        observer,
    };
    match (handler, &config.handler) {
        (Some(handler), _) => {
            let rest = handler.rest();
            let pipeline = parts.builder(Arc::clone(&store.store)).handler(handler)?;
            Ok(Ready { pipeline: ReadyPipeline::new(pipeline), rest })
        }
        (None, Handler::Sql(sql)) => match &store.statements {
            Some(store) => {
                Ok(Ready { pipeline: store.pipeline(&sql.statement, parts)?, rest: Rest::default() })
            }
            None => Err(without_transactions()),
        },
        (None, _) => Err(Error::new(ErrorKind::Config, "build the pipeline", "there is no handler")),
    }
}
