//! Waits for the replicas of a server over a dedicated connection: [`ReplicaWaiter`].
//!
//! `WAIT` blocks its connection, and renewals and claims must not wait behind it. A replica that has a write of this
//! connection also has all earlier writes of the server, because replication keeps their order.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use onceward::Error;
use parking_lot::Mutex;
use redis::{Pipeline, RedisResult, Value};

use crate::config::RedisOptions;
use crate::error::{classify, invalid_reply};
use crate::network::connection::ServerConnection;

/// The time limit for replicas of a cluster node that did not acknowledge the last time, until they do again: the keys of
/// the other nodes must not wait behind them.
const SHORT_WAIT: Duration = Duration::from_millis(100);

/// Waits until replicas have acknowledged all earlier writes. Calls during one `WAIT` share the next one.
#[derive(Debug)]
pub(crate) struct ReplicaWaiter {
    shared: Arc<WaiterShared>,
}

#[derive(Debug)]
struct WaiterShared {
    connection: ServerConnection,
    wanted: u32,
    timeout: Duration,
    is_cluster_node: bool,
    rounds: Mutex<WaitRounds>,
    /// Held by the round that is waiting.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct WaitRounds {
    /// The round that has not started yet.
    next: Option<WaitRound>,
    is_failing: bool,
}

type WaitRound = Shared<BoxFuture<'static, Arc<Result<WaitResult, Error>>>>;

/// The result of a round.
#[derive(Debug)]
struct WaitResult {
    replicas: u32,
    history: ReplicationHistory,
}

/// Whether replicas have a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplicaConfirmation {
    /// Enough replicas have it.
    Confirmed,
    /// Only this many acknowledged it in time.
    TooFew(u32),
    /// The two connections lead to different primaries: unknown.
    AnotherPrimary,
}

/// The replication id of a primary, which changes with a failover; `None` for a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplicationHistory(Option<String>);

impl ReplicationHistory {
    /// Adds the command whose reply contains it.
    pub(crate) fn request(pipeline: &mut Pipeline) {
        pipeline.cmd("INFO").arg("replication");
    }

    /// # Errors
    /// The server failed, or the reply is not that of the command.
    pub(crate) fn decode(operation: &'static str, reply: Option<RedisResult<Value>>) -> Result<Self, Error> {
        let reply =
            reply.ok_or_else(|| invalid_reply(operation))?.map_err(|error| classify(operation, error))?;
        let text: String = redis::from_redis_value(reply).map_err(|_| invalid_reply(operation))?;
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_end);
        let id = line("master_replid:").ok_or_else(|| invalid_reply(operation))?;
        Ok(Self((line("role:") == Some("master")).then(|| id.to_owned())))
    }

    pub(crate) fn is_of_a_primary(&self) -> bool {
        self.0.is_some()
    }
}

impl ReplicaWaiter {
    pub(crate) fn new(connection: ServerConnection, options: &RedisOptions, is_cluster_node: bool) -> Self {
        let shared = WaiterShared {
            connection,
            wanted: options.wait_replicas,
            timeout: options.wait_timeout,
            is_cluster_node,
            rounds: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits until enough replicas have everything that a server with this `history` has written so far. `mark` is a key in
    /// a slot of that server; `asking` says that the server is still importing the slot.
    ///
    /// # Errors
    /// The state of the replicas is unknown: a failover may lose the writes.
    pub(crate) async fn wait(
        &self,
        operation: &'static str,
        history: &ReplicationHistory,
        mark: Vec<u8>,
        asking: bool,
    ) -> Result<ReplicaConfirmation, Error> {
        let shared = &self.shared;
        let (round, is_failing) = {
            let mut rounds = shared.rounds.lock();
            let is_failing = rounds.is_failing;
            let start = || {
                let round = Arc::clone(shared).run_round(operation, mark, asking).boxed().shared();
                // It holds the turn, so it must not be cancelled with a caller.
                tokio::spawn(round.clone());
                round
            };
            (rounds.next.get_or_insert_with(start).clone(), is_failing)
        };
        let waited = if shared.is_cluster_node && is_failing {
            match tokio::time::timeout(SHORT_WAIT, round).await {
                Ok(waited) => waited,
                Err(_) => return Ok(ReplicaConfirmation::TooFew(0)),
            }
        } else {
            round.await
        };
        match &*waited {
            Err(error) => Err(error.clone()),
            Ok(waited) if waited.history != *history => {
                shared.connection.disconnect();
                Ok(ReplicaConfirmation::AnotherPrimary)
            }
            Ok(waited) if waited.replicas < shared.wanted => Ok(ReplicaConfirmation::TooFew(waited.replicas)),
            Ok(_) => Ok(ReplicaConfirmation::Confirmed),
        }
    }
}

impl WaiterShared {
    async fn run_round(
        self: Arc<Self>,
        operation: &'static str,
        mark: Vec<u8>,
        asking: bool,
    ) -> Arc<Result<WaitResult, Error>> {
        let _turn = self.turn.lock().await;
        // Writes from now on may come after the mark: they wait for the next round.
        self.rounds.lock().next = None;
        let waited = self.send_wait(operation, &mark, asking).await;
        let is_failing = !waited.as_ref().is_ok_and(|waited| waited.replicas >= self.wanted);
        self.rounds.lock().is_failing = is_failing;
        Arc::new(waited)
    }

    /// Writes `mark` and waits for it: `WAIT` covers the writes of its own connection only.
    async fn send_wait(
        &self,
        operation: &'static str,
        mark: &[u8],
        asking: bool,
    ) -> Result<WaitResult, Error> {
        let mut pipeline = redis::pipe();
        if asking {
            pipeline.cmd("ASKING");
        }
        pipeline.cmd("SET").arg(mark).arg("").arg("PX").arg(60_000);
        pipeline.cmd("WAIT").arg(self.wanted);
        pipeline.arg(u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX));
        ReplicationHistory::request(&mut pipeline);
        let mut replies = self.connection.send_all(operation, pipeline).await?;
        let (history, waited, written) = (replies.pop(), replies.pop(), replies.pop());
        let (Some(waited), Some(written)) = (waited, written) else { return Err(invalid_reply(operation)) };
        // If the slot is moved away at this moment, nothing is confirmed.
        written.map_err(|error| classify(operation, error))?;
        let replicas = waited.and_then(|waited| Ok(redis::from_redis_value::<u32>(waited)?));
        let replicas = replicas.map_err(|error| classify(operation, error))?;
        let history = ReplicationHistory::decode(operation, history)?;
        Ok(WaitResult { replicas, history })
    }
}
