//! Waits until replicas have what was written, over a connection that nothing else needs: [`Confirmer`].
//!
//! `WAIT` blocks its connection for as long as it waits. Renewals and claims must not stand behind it, so it has a
//! connection of its own. A replica that has a write of this connection has all earlier writes of the server too, because
//! replication keeps their order.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use onceward::Error;
use redis::{Pipeline, RedisResult, Value};

use crate::config::Settings;
use crate::error::{garbled, store_error};
use crate::link::Link;

/// Where replicas of one node of a cluster did not confirm, later batches wait only this long for them until they do
/// again: the keys of the other nodes must not stand behind them.
const SHORT_WAIT: Duration = Duration::from_millis(100);

/// Confirms that replicas have all that was written before. Calls that come while one `WAIT` is under way share the next.
pub(crate) struct Confirmer {
    shared: Arc<Inner>,
}

struct Inner {
    link: Link,
    wanted: u32,
    timeout: Duration,
    is_one_of_many: bool,
    rounds: Mutex<Rounds>,
    /// One round at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Rounds {
    /// The round that has not begun yet.
    next: Option<Round>,
    is_failing: bool,
}

type Round = Shared<BoxFuture<'static, Arc<Result<Waited, Error>>>>;

/// What a round found.
struct Waited {
    replicas: u32,
    history: History,
}

/// Whether replicas have what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// They have.
    Confirmed,
    /// Only so many of them had it in time.
    TooFew(u32),
    /// The two connections lead to different primaries, so that nothing is known.
    AnotherPrimary,
}

/// Which primary's history of writes a server is at: a failover begins another one. `None` for a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct History(Option<String>);

impl History {
    /// The command that shows it.
    pub(crate) fn ask(pipeline: &mut Pipeline) {
        pipeline.cmd("INFO").arg("replication");
    }

    pub(crate) fn read(operation: &'static str, reply: Option<RedisResult<Value>>) -> Result<Self, Error> {
        let reply =
            reply.ok_or_else(|| garbled(operation))?.map_err(|error| store_error(operation, error))?;
        let text: String = redis::from_redis_value(reply).map_err(|_| garbled(operation))?;
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_end);
        let id = line("master_replid:").ok_or_else(|| garbled(operation))?;
        Ok(Self((line("role:") == Some("master")).then(|| id.to_owned())))
    }

    pub(crate) fn is_of_a_primary(&self) -> bool {
        self.0.is_some()
    }
}

impl Confirmer {
    pub(crate) fn new(link: Link, settings: &Settings, is_one_of_many: bool) -> Self {
        let shared = Inner {
            link,
            wanted: settings.wait_replicas,
            timeout: settings.wait_timeout,
            is_one_of_many,
            rounds: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits until enough replicas have what a server with this `history` has written so far. `mark` is a key in a slot of
    /// that server; `asking` says that the slot is still moving to it.
    ///
    /// # Errors
    /// It cannot be known: a failover may lose the writes.
    pub(crate) async fn confirm(
        &self,
        operation: &'static str,
        history: &History,
        mark: Vec<u8>,
        asking: bool,
    ) -> Result<Confirmation, Error> {
        let shared = &self.shared;
        let (round, is_failing) = {
            let mut rounds = shared.rounds.lock().unwrap_or_else(PoisonError::into_inner);
            let is_failing = rounds.is_failing;
            let begin = || {
                let round = Arc::clone(shared).wait(operation, mark, asking).boxed().shared();
                // It holds the turn, so it must not depend on callers that may give up.
                tokio::spawn(round.clone());
                round
            };
            (rounds.next.get_or_insert_with(begin).clone(), is_failing)
        };
        let waited = if shared.is_one_of_many && is_failing {
            match tokio::time::timeout(SHORT_WAIT, round).await {
                Ok(waited) => waited,
                Err(_) => return Ok(Confirmation::TooFew(0)),
            }
        } else {
            round.await
        };
        match &*waited {
            Err(error) => Err(error.clone()),
            Ok(waited) if waited.history != *history => {
                shared.link.drop_connection();
                Ok(Confirmation::AnotherPrimary)
            }
            Ok(waited) if waited.replicas < shared.wanted => Ok(Confirmation::TooFew(waited.replicas)),
            Ok(_) => Ok(Confirmation::Confirmed),
        }
    }
}

impl Inner {
    async fn wait(
        self: Arc<Self>,
        operation: &'static str,
        mark: Vec<u8>,
        asking: bool,
    ) -> Arc<Result<Waited, Error>> {
        let _turn = self.turn.lock().await;
        // What is written from now on may come after the mark: it waits for the next round.
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner).next = None;
        let waited = self.ask(operation, &mark, asking).await;
        let is_failing = !waited.as_ref().is_ok_and(|waited| waited.replicas >= self.wanted);
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner).is_failing = is_failing;
        Arc::new(waited)
    }

    /// `WAIT` speaks, as documented, of the writes of its own connection: the mark is one.
    async fn ask(&self, operation: &'static str, mark: &[u8], asking: bool) -> Result<Waited, Error> {
        let mut pipeline = redis::pipe();
        if asking {
            pipeline.cmd("ASKING");
        }
        pipeline.cmd("SET").arg(mark).arg("").arg("PX").arg(60_000);
        pipeline.cmd("WAIT").arg(self.wanted);
        pipeline.arg(u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX));
        History::ask(&mut pipeline);
        let mut replies = self.link.send_all(operation, pipeline).await?;
        let (history, waited, written) = (replies.pop(), replies.pop(), replies.pop());
        let (Some(waited), Some(written)) = (waited, written) else { return Err(garbled(operation)) };
        // If the slot moves away just now, nothing is confirmed.
        written.map_err(|error| store_error(operation, error))?;
        let replicas = waited.and_then(|waited| Ok(redis::from_redis_value::<u32>(waited)?));
        let replicas = replicas.map_err(|error| store_error(operation, error))?;
        let history = History::read(operation, history)?;
        Ok(Waited { replicas, history })
    }
}
