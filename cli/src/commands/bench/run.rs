//! One run: fills a temporary source, consumes it in one way, and checks the ledger: [`Bench::run`].

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use onceward::adapter::{Consumer, StoreAdmin};
use onceward::store::ClaimTerms;
use onceward::{Error, ErrorKind, KeyExtractor, Scope};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::contestant::{CLAIM, Contestant, keys_expire_within};
use super::ledger_check::{Checked, check};
use super::loops::{Claims, one_by_one, raw};
use super::messages::{Keys, Messages};
use super::metered::{Meter, Metered};
use crate::commands::progress::PacedProgress;
use crate::config::Config;
use crate::handlers::{Ledger, LedgerHandler};
use crate::registry::{self, AnyHandler, BuildParts, OpenStore, TemporarySource};

/// Messages that are published together, and keys that are forgotten together.
const BATCH: u64 = 500;
/// A run in which nothing is delivered, claimed or acknowledged for so long has failed.
const STALLED: Duration = Duration::from_secs(60);

/// What all runs share.
pub(super) struct Bench<'a> {
    pub(super) configured: &'a Config,
    pub(super) tuned: &'a Config,
    pub(super) scope: &'a Scope,
    pub(super) keys: &'a KeyExtractor,
    pub(super) store: &'a OpenStore,
    pub(super) messages: &'a Messages,
    /// Fires at a signal.
    pub(super) stop: &'a CancellationToken,
    /// Becomes true once keys may be in the store that are not forgotten at the end of their run.
    pub(super) leaves_keys: &'a Cell<bool>,
}

/// The outcome of a run.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) contestant: Contestant,
    pub(super) round: u32,
    pub(super) elapsed: Duration,
    pub(super) checked: Checked,
}

impl Bench<'_> {
    /// Runs one contestant on `temporary`, which is empty. `None`: a signal has stopped it.
    ///
    /// # Errors
    /// [`Error`] if a part fails, or the ledger is wrong.
    pub(super) async fn run(
        &self,
        contestant: Contestant,
        round: u32,
        run: u32,
        temporary: &TemporarySource,
        progress: &mut PacedProgress,
    ) -> Result<Option<Measured>, Error> {
        let total = contestant.share(self.messages.total);
        let messages = self.messages.of_run(run, total, temporary.carries_headers);
        let keys = messages.check_keys(self.keys)?;
        refuse_copies(&messages, keys, temporary)?;
        if !self.fill(&messages, contestant, round, temporary, progress).await? {
            return Ok(None);
        }
        let ledger = Arc::new(Ledger::new(run, messages.distinct()));
        let done = self.stop.child_token();
        let expected = messages.expected(contestant.deduplicates());
        let meter = Meter::new(messages.total, expected, Arc::clone(&ledger), done.clone());
        let consumed = self.consume(contestant, temporary, &ledger, &meter, &done).await;
        if contestant.deduplicates() {
            match keys {
                Keys::Content => self.forget(&messages).await,
                Keys::Position => self.leaves_keys.set(true),
            }
        }
        consumed?;
        if self.stop.is_cancelled() {
            return Ok(None);
        }
        let checked = check(contestant, &messages, &ledger, &meter)?;
        // It is there if the check has passed.
        let elapsed = meter.elapsed().unwrap_or_default();
        Ok(Some(Measured { contestant, round, elapsed, checked }))
    }

    /// Publishes the messages. False: a signal has stopped it.
    async fn fill(
        &self,
        messages: &Messages,
        contestant: Contestant,
        round: u32,
        temporary: &TemporarySource,
        progress: &mut PacedProgress,
    ) -> Result<bool, Error> {
        let mut from = 0;
        while from < messages.total {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let until = messages.total.min(from + BATCH);
            let message = |index| messages.outgoing(messages.number(index), &temporary.destination);
            let batch: Vec<_> = (from..until).map(message).collect();
            temporary.publisher.publish(&batch).await.into_iter().collect::<Result<Vec<()>, Error>>()?;
            from = until;
            let total = messages.total;
            progress.print(format_args!(
                "round {round}, {}: {from} of {total} messages published",
                contestant.name()
            ));
        }
        Ok(true)
    }

    /// Consumes until all are acknowledged, or a signal stops it.
    async fn consume(
        &self,
        contestant: Contestant,
        temporary: &TemporarySource,
        ledger: &Arc<Ledger>,
        meter: &Arc<Meter>,
        done: &CancellationToken,
    ) -> Result<(), Error> {
        let config = if contestant == Contestant::Configured { self.configured } else { self.tuned };
        let source = registry::open_temporary_source(config, self.scope, temporary).await?;
        let source = Metered::new(source, Arc::clone(meter));
        let consuming = async {
            match contestant {
                Contestant::Raw => raw(source, ledger, done).await,
                Contestant::OneByOne => {
                    let terms = ClaimTerms { lease: CLAIM, max_attempts: 1, ttl: CLAIM };
                    let store: &dyn StoreAdmin = &*self.store.store;
                    let claims = Claims { store, scope: self.scope, keys: self.keys, terms, meter };
                    one_by_one(source, &claims, ledger, done).await
                }
                Contestant::Configured | Contestant::Tuned => {
                    self.pipeline(config, source, Arc::clone(ledger), done).await
                }
            }
        };
        tokio::pin!(consuming);
        let stalled = tokio::select! {
            biased;
            ended = &mut consuming => return ended,
            stalled = stalled(meter) => stalled,
        };
        // What it has in flight is given back.
        done.cancel();
        consuming.await?;
        Err(stalled)
    }

    async fn pipeline(
        &self,
        config: &Config,
        source: Metered,
        ledger: Arc<Ledger>,
        done: &CancellationToken,
    ) -> Result<(), Error> {
        let source: Box<dyn Consumer> = Box::new(source);
        let handler = Some(AnyHandler::Ledger(LedgerHandler::new(ledger)));
        let parts = BuildParts {
            source,
            store: self.store,
            handler,
            dead_letters: None,
            replies: None,
            observer: None,
        };
        let (running, _) = registry::build(config, self.scope, parts, false).await?.start(done.clone());
        running.await.map(drop)
    }

    /// Forgets the keys of a run. Those that are left expire.
    async fn forget(&self, messages: &Messages) {
        let mut from = 0;
        while from < messages.distinct() {
            let until = messages.distinct().min(from + BATCH);
            let keys: Vec<_> = (from..until).filter_map(|number| messages.key(self.keys, number)).collect();
            let forgotten = self.store.store.forget(self.scope, &keys).await;
            if let Some(error) = forgotten.into_iter().find_map(Result::err) {
                self.leaves_keys.set(true);
                let expire_within_s = keys_expire_within(self.configured).as_secs();
                tracing::warn!(
                    ?error, scope = %self.scope, expire_within_s,
                    "keys of the measurement not forgotten; they expire"
                );
                return;
            }
            from = until;
        }
    }
}

/// Copies are refused where the source drops them, or where they would be no duplicates.
fn refuse_copies(messages: &Messages, keys: Keys, temporary: &TemporarySource) -> Result<(), Error> {
    let what = match keys {
        _ if messages.copies_percent == 0 => return Ok(()),
        Keys::Position => "[key] from takes their position here, which differs for each; give --duplicates 0",
        Keys::Content if !temporary.delivers_copies => "this source drops them itself; give --duplicates 0",
        Keys::Content => return Ok(()),
    };
    Err(Error::new(ErrorKind::Config, "publish copies", what))
}

/// Waits until nothing has happened for [`STALLED`].
async fn stalled(meter: &Meter) -> Error {
    let mut last = [0; 3];
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = meter.progress();
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() >= STALLED {
            let what = format!(
                "nothing was delivered, claimed or acknowledged for {} s, after {} deliveries",
                STALLED.as_secs(),
                meter.delivered()
            );
            return Error::new(ErrorKind::Timeout, "consume the messages", what);
        }
    }
}
