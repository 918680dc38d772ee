//! Runs scripts: splits a batch by server, sends each part in one round trip, and reassembles the replies:
//! [`ScriptExecutor`].

pub(crate) mod batch;
pub(crate) mod format;

use std::sync::Arc;

use futures_util::future::join_all;
use onceward::{Error, ErrorKind, Scope};
use redis::{Cmd, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::OnceCell;

use crate::command::ScriptCommand;
use crate::command::codec::ReplyReader;
use crate::command::keyspace::{Keyspace, ScopeTag};
use crate::config::{RedisLayout, RedisOptions, compact_in_a_cluster};
use crate::error::{classify, invalid_reply};
use crate::executor::batch::{ScriptBatch, ScriptCall};
use crate::network::Network;
use crate::network::node::{is_server_error, redirected_node};
use crate::network::replication::{ReplicaConfirmation, ReplicaWaiter, ReplicationHistory};
use crate::network::server::RedisServer;

/// The most attempts to send a call, which may be redirected, or need the text of its script, before its error is returned.
const MAX_ATTEMPTS: usize = 6;

/// Runs the scripts of one store.
#[derive(Debug)]
pub(crate) struct ScriptExecutor {
    pub(crate) network: Network,
    pub(crate) keyspace: Keyspace,
    pub(crate) options: RedisOptions,
    format: OnceCell<()>,
    compact_format: OnceCell<()>,
}

/// The results of a batch as they arrive, by position.
type Results<T> = Vec<Option<Result<T, Error>>>;

/// The reply or error of the server, or an error of the connection.
type CallOutcome = Result<RedisResult<Value>, Error>;

impl ScriptExecutor {
    /// # Errors
    /// [`ErrorKind::Config`] if `options` are invalid.
    pub(crate) fn new(network: Network, options: RedisOptions) -> Result<Self, Error> {
        options.check()?;
        if network.is_cluster() && options.layout == RedisLayout::Compact {
            return Err(compact_in_a_cluster());
        }
        let keyspace = Keyspace::new(&options.prefix)?;
        Ok(Self { network, keyspace, options, format: OnceCell::new(), compact_format: OnceCell::new() })
    }

    /// Executes each of `items`; `head` precedes the items in the argument of each call.
    pub(crate) async fn execute<C: ScriptCommand>(
        &self,
        scope: &Scope,
        head: &[u8],
        items: &[C],
    ) -> Vec<Result<C::Reply, Error>> {
        if items.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.ensure_format().await {
            return items.iter().map(|_| Err(error.clone())).collect();
        }
        self.execute_in(ScopeTag::of(scope), head, items).await
    }

    /// As [`execute`](Self::execute), for a scope known by its tag, after [`ensure_format`](Self::ensure_format).
    pub(crate) async fn execute_in<C: ScriptCommand>(
        &self,
        tag: ScopeTag,
        head: &[u8],
        items: &[C],
    ) -> Vec<Result<C::Reply, Error>> {
        let batch = ScriptBatch {
            keyspace: &self.keyspace,
            by_bucket: self.network.is_cluster(),
            layout: self.options.layout,
            tag,
            head,
            items,
        };
        let mut results: Results<C::Reply> = items.iter().map(|_| None).collect();
        let mut calls = batch.split(0..items.len());
        for _ in 0..MAX_ATTEMPTS {
            let mut again = Vec::new();
            for (call, outcome) in self.send::<C>(calls).await {
                match outcome {
                    Ok(Ok(reply)) => set_replies(items, &call, &reply, &mut results),
                    Ok(Err(error)) => match redirect(&batch, &call, &error) {
                        Some(mut redirected) => {
                            self.network.mark_stale();
                            again.append(&mut redirected);
                        }
                        None if is_server_error(&error, ServerErrorKind::NoScript) && !call.with_text => {
                            again.push(call.with_text());
                        }
                        None => set_error(&call, &classify(C::OPERATION, error), &mut results),
                    },
                    Err(error) => {
                        self.network.mark_stale();
                        set_error(&call, &error, &mut results);
                    }
                }
            }
            if again.is_empty() {
                return finish::<C>(results, too_large);
            }
            calls = again;
        }
        finish::<C>(results, still_moving)
    }

    /// Runs a plain command on `key`, following redirections.
    ///
    /// # Errors
    /// The server or the connection failed, or `key` is still being moved after [`MAX_ATTEMPTS`].
    pub(crate) async fn run_command(
        &self,
        operation: &'static str,
        command: &Cmd,
        key: &[u8],
    ) -> Result<Value, Error> {
        let mut asking = None;
        for _ in 0..MAX_ATTEMPTS {
            let mut pipeline = redis::pipe();
            let server = match &asking {
                Some(node) => {
                    pipeline.cmd("ASKING");
                    self.network.node(node)?
                }
                None => self.network.owner_of(operation, key).await?,
            };
            pipeline.add_command(command.clone());
            let sent = server.connection.send_all(operation, pipeline).await;
            let replies = sent.inspect_err(|_| self.network.mark_stale())?;
            match replies.into_iter().next_back() {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(error)) if is_server_error(&error, ServerErrorKind::Moved) => {
                    self.network.mark_stale();
                    asking = None;
                }
                Some(Err(error)) if is_server_error(&error, ServerErrorKind::Ask) => {
                    asking = redirected_node(&error);
                }
                Some(Err(error)) => return Err(classify(operation, error)),
                None => return Err(invalid_reply(operation)),
            }
        }
        Err(still_moving(operation))
    }

    /// Sends each call to its server, all calls of one server in one round trip.
    async fn send<C: ScriptCommand>(&self, calls: Vec<ScriptCall>) -> Vec<(ScriptCall, CallOutcome)> {
        let mut outcomes = Vec::with_capacity(calls.len());
        let mut by_server: Vec<(Arc<RedisServer>, Vec<ScriptCall>)> = Vec::new();
        for call in calls {
            let server = match &call.asking {
                Some(node) => self.network.node(node),
                None => self.network.owner_of(C::OPERATION, call.first_key()).await,
            };
            match server {
                Ok(server) => match by_server.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &server)) {
                    Some((_, calls)) => calls.push(call),
                    None => by_server.push((server, vec![call])),
                },
                Err(error) => outcomes.push((call, Err(error))),
            }
        }
        let sent =
            join_all(by_server.into_iter().map(|(server, calls)| self.send_to::<C>(server, calls))).await;
        outcomes.extend(sent.into_iter().flatten());
        outcomes
    }

    /// Sends `calls` to `server` in one round trip, and waits for its replicas if the command needs them.
    async fn send_to<C: ScriptCommand>(
        &self,
        server: Arc<RedisServer>,
        calls: Vec<ScriptCall>,
    ) -> Vec<(ScriptCall, CallOutcome)> {
        let mut pipeline = redis::pipe();
        let mut reply_positions = Vec::with_capacity(calls.len());
        for call in &calls {
            if call.asking.is_some() {
                pipeline.cmd("ASKING");
            }
            reply_positions.push(pipeline.len());
            pipeline.add_command(call.command(C::script()));
        }
        let replicas = server.replicas.as_ref().filter(|_| C::NEEDS_REPLICAS);
        if replicas.is_some() {
            ReplicationHistory::request(&mut pipeline);
        }
        let mut replies = match server.connection.send_all(C::OPERATION, pipeline).await {
            Ok(replies) => replies,
            Err(error) => return calls.into_iter().map(|call| (call, Err(error.clone()))).collect(),
        };
        let confirmed = match (replicas, calls.first()) {
            (Some(replicas), Some(call)) => {
                let history = ReplicationHistory::decode(C::OPERATION, replies.pop());
                // Nothing was written if all calls failed.
                if replies.iter().all(Result::is_err) {
                    Ok(())
                } else {
                    self.wait_for_replicas(C::OPERATION, &server, replicas, history, call).await
                }
            }
            _ => Ok(()),
        };
        let mut take = |position: usize| match replies.get_mut(position) {
            Some(reply) => {
                let reply = std::mem::replace(reply, Ok(Value::Nil));
                // A failed call has written nothing that replicas could lack.
                if reply.is_ok()
                    && let Err(error) = &confirmed
                {
                    return Err(error.clone());
                }
                Ok(reply)
            }
            None => Err(invalid_reply(C::OPERATION)),
        };
        calls.into_iter().zip(reply_positions).map(|(call, position)| (call, take(position))).collect()
    }

    /// Waits until the replicas have acknowledged everything up to the write of `call`.
    async fn wait_for_replicas(
        &self,
        operation: &'static str,
        server: &RedisServer,
        replicas: &ReplicaWaiter,
        history: Result<ReplicationHistory, Error>,
        call: &ScriptCall,
    ) -> Result<(), Error> {
        let (history, mark) = (history?, self.keyspace.wait(call.bucket));
        let confirmation = match history.is_of_a_primary() {
            true => replicas.wait(operation, &history, mark, call.asking.is_some()).await?,
            false => ReplicaConfirmation::AnotherPrimary,
        };
        match confirmation {
            ReplicaConfirmation::Confirmed => Ok(()),
            ReplicaConfirmation::TooFew(count) => {
                Err(too_few_replicas(operation, count, self.options.wait_replicas))
            }
            ReplicaConfirmation::AnotherPrimary => {
                server.connection.disconnect();
                let what = "another server has just become the primary; whether it has the write is unknown";
                Err(Error::new(ErrorKind::Timeout, operation, what))
            }
        }
    }
}

/// The calls to send instead, if `error` says that the server does not hold all keys of `call`.
fn redirect<C: ScriptCommand>(
    batch: &ScriptBatch<'_, C>,
    call: &ScriptCall,
    error: &RedisError,
) -> Option<Vec<ScriptCall>> {
    if is_server_error(error, ServerErrorKind::Moved) {
        // The slots are read again before it is sent.
        return Some(vec![call.not_asking()]);
    }
    // While a slot is being moved, its keys are on two nodes; each single key is served by one of them.
    if is_server_error(error, ServerErrorKind::Ask) {
        let node = redirected_node(error)?;
        return Some(batch.split_singly(call).map(|call| call.asking(node.clone())).collect());
    }
    (is_server_error(error, ServerErrorKind::TryAgain) && call.positions.len() > 1)
        .then(|| batch.split_singly(call).collect())
}

/// Sets the results of the items of `call` from its reply.
fn set_replies<C: ScriptCommand>(
    items: &[C],
    call: &ScriptCall,
    reply: &Value,
    results: &mut Results<C::Reply>,
) {
    match decode(items, call, reply) {
        Some(decoded) => {
            for (position, result) in call.positions.iter().zip(decoded) {
                results[*position] = Some(result);
            }
        }
        None => set_error(call, &invalid_reply(C::OPERATION), results),
    }
}

/// The results in `reply`; `None` if it is not a reply of the script.
fn decode<C: ScriptCommand>(
    items: &[C],
    call: &ScriptCall,
    reply: &Value,
) -> Option<Vec<Result<C::Reply, Error>>> {
    let Value::BulkString(bytes) = reply else { return None };
    let mut reader = ReplyReader::new(bytes);
    let mut results = Vec::with_capacity(call.positions.len());
    for position in &call.positions {
        let item = &items[*position];
        results.push(match reader.u8().ok()? {
            b'!' => Err(unreadable(item, reader.u8().ok()?)),
            tag => Ok(item.decode(tag, &mut reader).ok()?),
        });
    }
    reader.is_empty().then_some(results)
}

fn set_error<T>(call: &ScriptCall, error: &Error, results: &mut Results<T>) {
    for position in &call.positions {
        results[*position] = Some(Err(error.clone()));
    }
}

/// The results; items without one get the error `missing`.
fn finish<C: ScriptCommand>(
    results: Results<C::Reply>,
    missing: fn(&'static str) -> Error,
) -> Vec<Result<C::Reply, Error>> {
    results.into_iter().map(|result| result.unwrap_or_else(|| Err(missing(C::OPERATION)))).collect()
}

fn unreadable<C: ScriptCommand>(item: &C, form: u8) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        C::OPERATION,
        format!(
            "the record of key {} has the form {form}, which this version cannot read; a later version wrote it, or it is damaged. \
             Update this program, or delete the record",
            item.key()
        ),
    )
}

fn too_large(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        operation,
        "the item is larger than 256 MiB; limit results with max_result_bytes",
    )
}

fn still_moving(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        operation,
        "the slots of the keys are being moved between nodes of the cluster",
    )
}

fn too_few_replicas(operation: &'static str, count: u32, wanted: u32) -> Error {
    Error::new(
        ErrorKind::Timeout,
        operation,
        format!(
            "{count} of {wanted} replicas acknowledged the write in time; it is written, but a failover may lose it. \
             If this persists, check the replicas, or lower wait_replicas"
        ),
    )
}
