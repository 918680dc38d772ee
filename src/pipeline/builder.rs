//! Builds a pipeline and rejects invalid combinations: [`PipelineBuilder`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::config::{OnCompleted, OnExhausted, OnMismatch, OnMissingKey, PipelineConfig, Policies};
use super::guarantee::{Deduplicated, EffectivelyOnce};
use super::measure::Measurer;
use super::run::{Parts, run};
use super::runnable::Pipeline;
use super::runner::plain::Plain;
use super::runner::transactional::Transactional;
use crate::consumer::Consumer;
use crate::dead_letter::DeadLetters;
use crate::error::{Error, ErrorKind};
use crate::extract::{KeyExtractor, KeySource};
use crate::handler::{Handler, TxHandler};
use crate::key::{Fingerprinting, Scope};
use crate::replies::Replies;
use crate::store::{SharedStore, TransactionalStore};
use crate::telemetry::{Counters, Observer};

/// Collects the parts of a [`Pipeline`].
pub struct PipelineBuilder<S> {
    scope: Scope,
    consumer: Box<dyn Consumer>,
    store: S,
    keys: Option<KeyExtractor>,
    dead_letters: Option<DeadLetters>,
    replies: Option<Arc<dyn Replies>>,
    observer: Option<Arc<dyn Observer>>,
    config: PipelineConfig,
    set: Explicit,
}

/// The options that were set by their own methods: they hold whether `config` was called before or after.
#[derive(Default)]
struct Explicit {
    ttl: Option<Duration>,
    concurrency: Option<usize>,
    fingerprint: Option<Fingerprinting>,
    transaction_batch: Option<usize>,
    park_exhausted: bool,
}

impl Explicit {
    fn apply(&self, config: &mut PipelineConfig) {
        if let Some(ttl) = self.ttl {
            config.ttl = ttl;
        }
        if let Some(concurrency) = self.concurrency {
            config.concurrency = concurrency;
            config.max_in_flight = config.max_in_flight.max(concurrency);
        }
        if let Some(fingerprint) = &self.fingerprint {
            config.fingerprint = fingerprint.clone();
        }
        if let Some(runs) = self.transaction_batch {
            config.transaction_batch = runs;
        }
        if self.park_exhausted {
            config.policies.on_exhausted = OnExhausted::Park;
        }
    }
}

impl Pipeline<()> {
    /// Starts with whose messages they are, where they come from and where their keys are kept.
    pub fn builder<S: SharedStore>(scope: Scope, consumer: impl Consumer, store: S) -> PipelineBuilder<S> {
        PipelineBuilder {
            scope,
            consumer: Box::new(consumer),
            store,
            keys: None,
            dead_letters: None,
            replies: None,
            observer: None,
            config: PipelineConfig::default(),
            set: Explicit::default(),
        }
    }
}

impl<S> fmt::Debug for PipelineBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineBuilder").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl<S: SharedStore> PipelineBuilder<S> {
    /// Where the idempotency key comes from: the first of these that is present. Without it: the header
    /// `idempotency-key`, the message id, the position.
    #[must_use]
    pub fn keys(mut self, sources: impl IntoIterator<Item = KeySource>) -> Self {
        self.keys = Some(KeyExtractor::new(&self.scope, sources.into_iter().collect()));
        self
    }

    /// As [`keys`](Self::keys), with an extractor made elsewhere (with a secret, say). It must be of the same scope.
    #[must_use]
    pub fn key_extractor(mut self, keys: KeyExtractor) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Where messages go that failed for good.
    #[must_use]
    pub fn dead_letters(mut self, dead_letters: DeadLetters) -> Self {
        self.dead_letters = Some(dead_letters);
        self
    }

    /// Sends the result of a completed message to where the message asks for it, before it is acked: to the message that was
    /// handled, and to each duplicate of it. A reply may arrive more than once. The policy
    /// [`on_completed`](super::config::Policies::on_completed) is then
    /// [`ReplayResult`](super::config::OnCompleted::ReplayResult).
    #[must_use]
    pub fn replies(mut self, replies: Arc<dyn Replies>) -> Self {
        self.replies = Some(replies);
        self
    }

    /// Receives the pipeline's measurements: times, attempts, ages of duplicates, outcomes by origin.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// All limits and choices at once. What [`ttl`](Self::ttl) and the other methods for single values set holds, whether
    /// they are called before or after this one.
    #[must_use]
    pub fn config(mut self, config: PipelineConfig) -> Self {
        self.config = config;
        self
    }

    /// How long a completed key is remembered.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.set.ttl = Some(ttl);
        self
    }

    /// How many handlers run at once.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.set.concurrency = Some(concurrency);
        self
    }

    /// Whether payloads of one key are compared, by what JSON means or by bytes; more in
    /// [`fingerprinting`](Self::fingerprinting).
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: bool) -> Self {
        self.set.fingerprint = Some(if fingerprint { Fingerprinting::Json } else { Fingerprinting::Off });
        self
    }

    /// The part of payloads under one key that is compared.
    #[must_use]
    pub fn fingerprinting(mut self, fingerprinting: Fingerprinting) -> Self {
        self.set.fingerprint = Some(fingerprinting);
        self
    }

    /// Works without dead letters: a message that failed for good, has no key or has the key of another message stays
    /// in the source and is retried at the longest delay.
    #[must_use]
    pub fn park_exhausted(mut self) -> Self {
        self.set.park_exhausted = true;
        self
    }

    /// A pipeline whose handler runs under a claim, and whose completion is written after it.
    ///
    /// # Errors
    /// [`Error`] of the kind `Config`, naming the values that disagree.
    pub fn handler<H: Handler>(self, handler: H) -> Result<Pipeline<Deduplicated>, Error> {
        let parts = self.parts()?;
        if parts.config.transaction_batch > 1 {
            return Err(Error::new(
                ErrorKind::Config,
                "build this pipeline",
                format!(
                    "transaction_batch is {}, and this handler writes through no transaction of the store's; set it to \
                     1, or use a transactional handler",
                    parts.config.transaction_batch
                ),
            ));
        }
        Ok(pipeline(parts, Plain(handler)))
    }

    fn parts(mut self) -> Result<Parts, Error> {
        self.set.apply(&mut self.config);
        if self.replies.is_some() {
            self.config.policies.on_completed = OnCompleted::ReplayResult;
        }
        self.config.check()?;
        check_replies(&self.config.policies, self.replies.is_some())?;
        let policies = &self.config.policies;
        let dead_letters_wanted = policies.on_exhausted == OnExhausted::DeadLetter;
        if dead_letters_wanted && self.dead_letters.is_none() {
            let also = [
                (policies.on_missing_key == OnMissingKey::DeadLetter).then_some("on_missing_key"),
                (policies.on_mismatch == OnMismatch::DeadLetter).then_some("on_mismatch"),
            ];
            let names: Vec<_> = ["on_exhausted"].into_iter().chain(also.into_iter().flatten()).collect();
            return Err(Error::new(
                ErrorKind::Config,
                "build this pipeline",
                format!(
                    "{} say dead-letter, but there is no destination; give one with dead_letters(…), or keep such \
                     messages in the source with park_exhausted()",
                    names.join(", ")
                ),
            ));
        }
        let default_sources =
            || vec![KeySource::Header("idempotency-key".into()), KeySource::MessageId, KeySource::Position];
        let keys = self.keys.unwrap_or_else(|| KeyExtractor::new(&self.scope, default_sources()));
        if let Some(wrong) = no_source(&keys) {
            return Err(Error::new(ErrorKind::Config, "build this pipeline", wrong));
        }
        let source = self.consumer.capabilities();
        if self.config.until_idle && !source.reports_idle && !source.finite {
            return Err(Error::new(
                ErrorKind::Config,
                "build this pipeline",
                "the run is to end when the source is idle (until_idle, --until-empty), and the source cannot report that, so that \
                 it would never end. Stop it with its shutdown token or a signal instead. A consumer whose is_idle answers \
                 declares Capabilities::reports_idle; on SQS it needs the right sqs:GetQueueAttributes",
            ));
        }
        if source.retries_lose_position && takes_position(&keys) {
            return Err(Error::new(
                ErrorKind::Config,
                "build this pipeline",
                "the position is a key source, and retries are redelivered at another position that nothing proves: give the \
                 source and the pipeline own headers with a secret, or name other key sources",
            ));
        }
        if keys.scope() != &self.scope {
            return Err(Error::new(
                ErrorKind::Config,
                "build this pipeline",
                format!("the key extractor is of scope {}, the pipeline of {}", keys.scope(), self.scope),
            ));
        }
        Ok(Parts {
            scope: self.scope,
            consumer: self.consumer,
            store: self.store.as_store(),
            keys,
            dead_letters: self.dead_letters,
            replies: self.replies,
            config: self.config,
            counters: Arc::new(Counters::default()),
            measurer: Measurer::new(self.observer),
        })
    }
}

impl<S: TransactionalStore> PipelineBuilder<Arc<S>> {
    /// Up to how many runs of the transactional handler share a transaction; see
    /// [`PipelineConfig::transaction_batch`]. For handlers of a few short statements. They run one after the other, each
    /// isolated by a savepoint: one that fails takes no other with it. If they cannot be committed together, each is
    /// run again in a transaction of its own.
    ///
    /// ```
    /// # #[cfg(feature = "testing")]
    /// # {
    /// use std::sync::Arc;
    /// use onceward::testing::{MemoryBroker, MemoryInbox, MemoryTransaction};
    /// use onceward::{Handled, KeySource, MemoryStore, Message, Pipeline, Scope, tx_handler};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), onceward::Error> {
    /// async fn charge(_app: (), message: Message, tx: &mut MemoryTransaction) -> Handled {
    ///     tx.effect(String::from_utf8_lossy(message.payload()));
    ///     Ok(())
    /// }
    ///
    /// let (broker, store) = (MemoryBroker::finite(), MemoryInbox::new(MemoryStore::new()));
    /// (0..100).for_each(|n| broker.publish(Message::builder(format!("pay {n}"))));
    /// let pipeline = Pipeline::builder(Scope::parse("billing")?, broker.consumer(), Arc::new(store.clone()))
    ///     .keys([KeySource::PayloadHash])
    ///     .park_exhausted()
    ///     .transaction_batch(50)
    ///     .transactional_handler(tx_handler(&store, (), charge))?;
    /// assert_eq!(pipeline.run(Default::default()).await?.handled(), 100);
    /// assert_eq!(store.effects().len(), 100);
    /// # Ok(()) }
    /// # main().unwrap();
    /// # }
    /// ```
    #[must_use]
    pub fn transaction_batch(mut self, runs: usize) -> Self {
        self.set.transaction_batch = Some(runs);
        self
    }

    /// A pipeline whose handler runs inside the transaction that also records its completion.
    ///
    /// # Errors
    /// [`Error`] of the kind `Config`, naming the values that disagree.
    pub fn transactional_handler<H: TxHandler<S>>(
        self,
        handler: H,
    ) -> Result<Pipeline<EffectivelyOnce>, Error> {
        let store = Arc::clone(&self.store);
        let parts = self.parts()?;
        if parts.config.mode == super::config::Mode::Observe {
            return Err(Error::new(
                ErrorKind::Config,
                "build this pipeline",
                "observe mode suppresses nothing, and a transactional handler cannot run without a claim; use one or \
                 the other",
            ));
        }
        if parts.config.policies.on_mismatch == OnMismatch::Process {
            return Err(Error::new(
                ErrorKind::Config,
                "build this pipeline",
                "on_mismatch is process, which runs a message without a claim, and a transactional handler cannot run \
                 without one; set it to dead-letter or ack",
            ));
        }
        if parts.config.transaction_batch > 1 && !store.shares_transactions() {
            return Err(Error::new(
                ErrorKind::Config,
                "build this pipeline",
                format!(
                    "transaction_batch is {}, and the store {} lets no effects share a transaction; set it to 1",
                    parts.config.transaction_batch,
                    store.capabilities().name
                ),
            ));
        }
        Ok(pipeline(parts, Transactional::new(store, handler)))
    }
}

fn check_replies(policies: &Policies, has_replies: bool) -> Result<(), Error> {
    if policies.on_completed == OnCompleted::Ack || has_replies {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        "build this pipeline",
        "on_completed is replay-result, but there is nothing that sends replies; give the source's with replies(…), or set \
         on_completed to ack if its messages name no address for a reply",
    ))
}

/// Why these sources give no key, or the same one to all messages.
fn no_source(keys: &KeyExtractor) -> Option<&'static str> {
    fn is_empty(source: &KeySource) -> bool {
        match source {
            KeySource::Composite(parts) => parts.is_empty() || parts.iter().any(is_empty),
            _ => false,
        }
    }

    if keys.sources().next().is_none() {
        return Some("there is no key source, so that no message has a key; name at least one");
    }
    let what =
        "a composite key source has no parts, so that all messages would share one key; name its parts";
    keys.sources().any(is_empty).then_some(what)
}

/// True if a message's key may be its position, or made of it.
fn takes_position(keys: &KeyExtractor) -> bool {
    fn is_position(source: &KeySource) -> bool {
        match source {
            KeySource::Position => true,
            KeySource::Composite(parts) => parts.iter().any(is_position),
            _ => false,
        }
    }
    keys.sources().any(is_position)
}

fn pipeline<G, R: super::runner::Runner>(parts: Parts, runner: R) -> Pipeline<G> {
    let counters = Arc::clone(&parts.counters);
    Pipeline {
        start: Box::new(move |shutdown| Box::pin(run(parts, runner, shutdown))),
        counters,
        guarantee: std::marker::PhantomData,
    }
}
