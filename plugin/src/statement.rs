//! Stores that run a statement in the completion's transaction: [`StatementStore`], and the [`ReadyPipeline`] around it.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use onceward::adapter::{Consumer, Replies};
use onceward::pipeline::Guarantee;
use onceward::telemetry::{Counters, Observer};
use onceward::{
    DeadLetters, Error, KeyExtractor, Pipeline, PipelineBuilder, PipelineConfig, Scope, SharedStore, Summary,
};
use tokio_util::sync::CancellationToken;

/// A store that runs the statement of `[handler.sql]` in the completion's transaction.
#[async_trait]
pub trait StatementStore: Send + Sync {
    /// Has the database compile the statement, without running it.
    ///
    /// # Errors
    /// [`Error`] if it does not compile, or the database cannot be asked.
    async fn check(&self, statement: &str) -> Result<(), Error>;

    /// A pipeline whose handler is the statement.
    ///
    /// # Errors
    /// [`Error`] naming the values that disagree.
    fn pipeline(&self, statement: &str, parts: PipelineParts) -> Result<ReadyPipeline, Error>;

    /// Closes connections in good order.
    async fn close(&self);
}

/// The parts of a pipeline, apart from its store and its handler.
pub struct PipelineParts {
    /// Whose keys these are.
    pub scope: Scope,
    /// Where messages come from.
    pub source: Box<dyn Consumer>,
    /// Finds the key of a message.
    pub keys: KeyExtractor,
    /// Limits and policies.
    pub config: PipelineConfig,
    /// Where dead letters go.
    pub dead_letters: Option<DeadLetters>,
    /// Sends results to where messages ask for them; `None` where completed messages are only acked.
    pub replies: Option<Arc<dyn Replies>>,
    /// Receives the measurements.
    pub observer: Option<Arc<dyn Observer>>,
}

impl PipelineParts {
    /// A builder that has all of them.
    pub fn builder<S: SharedStore>(self, store: S) -> PipelineBuilder<S> {
        let builder =
            Pipeline::builder(self.scope, self.source, store).key_extractor(self.keys).config(self.config);
        let builder = match self.dead_letters {
            Some(dead_letters) => builder.dead_letters(dead_letters),
            None => builder,
        };
        let builder = match self.replies {
            Some(replies) => builder.replies(replies),
            None => builder,
        };
        match self.observer {
            Some(observer) => builder.observer(observer),
            None => builder,
        }
    }
}

/// A pipeline of any type, ready to run.
#[must_use = "a pipeline does nothing until it runs"]
pub struct ReadyPipeline {
    /// What it counts, also while it runs.
    pub counters: Arc<Counters>,
    /// The guarantee that its parts give.
    pub guarantee: &'static str,
    start: Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, Result<Summary, Error>> + Send>,
}

impl ReadyPipeline {
    /// Erases the type of `pipeline`.
    pub fn new<G: Guarantee>(pipeline: Pipeline<G>) -> Self {
        Self {
            counters: pipeline.counters(),
            guarantee: G::NAME,
            start: Box::new(move |shutdown| Box::pin(pipeline.run(shutdown))),
        }
    }

    /// Runs until the source ends or the token is cancelled.
    pub fn start(self, shutdown: CancellationToken) -> BoxFuture<'static, Result<Summary, Error>> {
        (self.start)(shutdown)
    }
}
