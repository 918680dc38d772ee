//! Calls of scripts: batches grouped by server, one round trip each, and what makes such a call whole again: [`Caller`].

use futures_util::future::join_all;
use onceward::{Error, ErrorKind, Scope};
use redis::{Cmd, RedisResult, Value};
use tokio::sync::OnceCell;

use crate::ask::Ask;
use crate::config::{RedisConfig, Settings};
use crate::error::{garbled, is_slot_moving, is_unknown_script, store_error};
use crate::keys::{Keyspace, ScopeTag};
use crate::link::{Connection, Link};
use crate::script::Script;
use crate::wire::{Reader, Writer};

/// Keys in one call of a script. The server does nothing else meanwhile: some 3 µs a key.
const MAX_KEYS: usize = 500;

/// A call is closed once its items have this many bytes.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The longest single item; Redis takes no argument beyond 512 MiB.
const MAX_ITEM_BYTES: usize = 256 * 1024 * 1024;

/// Asks scripts, over one link.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) link: Link,
    pub(crate) space: Keyspace,
    pub(crate) settings: Settings,
    pub(crate) format: OnceCell<()>,
}

/// Items that one call of a script takes.
#[derive(Default)]
struct Group {
    /// Their places in the batch.
    places: Vec<usize>,
    keys: Vec<Vec<u8>>,
    payload: Writer,
    bucket: u8,
}

/// A reply, and how many replicas have what it promises, if that was asked.
struct Reply {
    value: Value,
    replicas: Option<i64>,
}

impl Caller {
    pub(crate) fn new(config: &RedisConfig) -> Result<Self, Error> {
        let space = config.validate()?;
        Ok(Self {
            link: Link::new(config)?,
            space,
            settings: config.settings.clone(),
            format: OnceCell::new(),
        })
    }

    /// Asks about each of `items`; `head` stands before the items of each call.
    pub(crate) async fn ask<A: Ask>(
        &self,
        scope: &Scope,
        head: &[u8],
        items: &[A],
    ) -> Vec<Result<A::Answer, Error>> {
        if items.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.format.get_or_try_init(|| self.agree_on_format()).await {
            return items.iter().map(|_| Err(error.replicate())).collect();
        }
        self.ask_in(ScopeTag::of(scope), head, items).await
    }

    /// As [`ask`](Self::ask), for a scope known by its tag, in a store whose format was looked at.
    pub(crate) async fn ask_in<A: Ask>(
        &self,
        tag: ScopeTag,
        head: &[u8],
        items: &[A],
    ) -> Vec<Result<A::Answer, Error>> {
        let mut answers: Vec<Option<Result<A::Answer, Error>>> = items.iter().map(|_| None).collect();
        let all = self.group(tag, head, items, 0..items.len(), MAX_KEYS);
        let replies = join_all(all.into_iter().map(|group| self.call::<A>(tag, head, items, group))).await;
        for (place, answer) in replies.into_iter().flatten() {
            answers[place] = Some(answer);
        }
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(too_large(A::OPERATION)))).collect()
    }

    /// Sorts items into calls: those of a cluster by bucket, and none too large.
    fn group<A: Ask>(
        &self,
        tag: ScopeTag,
        head: &[u8],
        items: &[A],
        places: impl Iterator<Item = usize>,
        max_keys: usize,
    ) -> Vec<Group> {
        let mut places: Vec<usize> = places.collect();
        let bucket_of = |place: usize| {
            if self.link.is_cluster() { Keyspace::bucket(items[place].key()) } else { 0 }
        };
        places.sort_by_key(|place| bucket_of(*place));
        let mut groups: Vec<Group> = Vec::new();
        for place in places {
            let bucket = bucket_of(place);
            let mut item = Writer::default();
            items[place].write(&mut item);
            if item.len() > MAX_ITEM_BYTES {
                continue;
            }
            let has_room = |group: &&mut Group| {
                group.bucket == bucket
                    && group.places.len() < max_keys
                    && group.payload.len() + item.len() <= MAX_BYTES.max(head.len() + item.len())
            };
            let group = match groups.last_mut().filter(has_room) {
                Some(group) => group,
                None => {
                    groups.push(Group { bucket, payload: Writer::starting_with(head), ..Group::default() });
                    let last = groups.len() - 1;
                    &mut groups[last]
                }
            };
            group.places.push(place);
            group.keys.push(self.space.record(tag, items[place].key()));
            group.payload.append(item);
        }
        groups
    }

    /// One call, and its answers by their places in the batch.
    async fn call<A: Ask>(
        &self,
        tag: ScopeTag,
        head: &[u8],
        items: &[A],
        group: Group,
    ) -> Vec<(usize, Result<A::Answer, Error>)> {
        let places = group.places.clone();
        let outcome = match self.run::<A>(&group).await {
            Ok(Err(error)) if is_slot_moving(&error) && places.len() > 1 => {
                // While a slot moves, its keys are on two nodes; each alone is served by one of them.
                let alone = self.group(tag, head, items, places.into_iter(), 1);
                let calls = alone.iter().map(|group| async {
                    let outcome = settle::<A, _>(self.run::<A>(group).await);
                    self.answers(items, &group.places, outcome)
                });
                return join_all(calls).await.into_iter().flatten().collect();
            }
            outcome => settle::<A, _>(outcome),
        };
        self.answers(items, &places, outcome)
    }

    async fn run<A: Ask>(&self, group: &Group) -> Result<RedisResult<Reply>, Error> {
        let waits = A::IS_PROMISE && self.settings.wait_replicas > 0;
        self.link
            .with_connection(A::OPERATION, |mut connection| async move {
                let known = self.evaluate(&mut connection, A::script(), true, group, waits).await;
                match known {
                    Err(error) if is_unknown_script(&error) => {
                        self.evaluate(&mut connection, A::script(), false, group, waits).await
                    }
                    known => known,
                }
            })
            .await
    }

    /// Runs a script by its hash, or by its text, from which the server knows it by its hash too.
    async fn evaluate(
        &self,
        connection: &mut Connection,
        script: &Script,
        by_hash: bool,
        group: &Group,
        waits: bool,
    ) -> RedisResult<Reply> {
        let (name, text) = if by_hash { ("EVALSHA", script.sha.as_str()) } else { ("EVAL", script.source) };
        let mut command = Cmd::new();
        command.arg(name).arg(text).arg(group.keys.len());
        for key in &group.keys {
            command.arg(key.as_slice());
        }
        command.arg(group.payload.as_bytes());
        let Some(first) = group.keys.first() else {
            return Ok(Reply { value: Value::BulkString(Vec::new()), replicas: None });
        };
        if !waits {
            return Ok(Reply { value: connection.send(command, first).await?, replicas: None });
        }
        // `WAIT` speaks of the writes of its own connection. A repeated call may have written on an earlier one and
        // find nothing left to write: this write comes after all that was found.
        let mut pipeline = redis::pipe();
        pipeline.add_command(command);
        pipeline.cmd("SET").arg(self.space.wait(group.bucket)).arg("").arg("PX").arg(60_000);
        pipeline
            .cmd("WAIT")
            .arg(self.settings.wait_replicas)
            .arg(self.settings.wait_timeout.as_millis() as u64);
        let mut replies = connection.send_all(pipeline, first).await?.into_iter();
        let mut next = || replies.next().unwrap_or_default().extract_error();
        let value = next()?;
        next()?;
        let replicas = redis::from_redis_value(next()?)?;
        Ok(Reply { value, replicas: Some(replicas) })
    }

    fn answers<A: Ask>(
        &self,
        items: &[A],
        places: &[usize],
        outcome: Result<Reply, Error>,
    ) -> Vec<(usize, Result<A::Answer, Error>)> {
        let outcome = outcome.and_then(|reply| {
            let wanted = i64::from(self.settings.wait_replicas);
            match reply.replicas {
                Some(count) if count < wanted => Err(too_few_replicas(A::OPERATION, count, wanted)),
                _ => unpack(items, places, &reply.value).ok_or_else(|| garbled(A::OPERATION)),
            }
        });
        match outcome {
            Ok(answers) => places.iter().copied().zip(answers).collect(),
            Err(error) => places.iter().map(|place| (*place, Err(error.replicate()))).collect(),
        }
    }
}

fn settle<A: Ask, T>(outcome: Result<RedisResult<T>, Error>) -> Result<T, Error> {
    outcome?.map_err(|error| store_error(A::OPERATION, error))
}

/// The answers of a reply; `None` if it is not one of ours.
fn unpack<A: Ask>(items: &[A], places: &[usize], reply: &Value) -> Option<Vec<Result<A::Answer, Error>>> {
    let Value::BulkString(bytes) = reply else { return None };
    let mut reader = Reader::new(bytes);
    let mut answers = Vec::with_capacity(places.len());
    for place in places {
        let item = &items[*place];
        answers.push(match reader.u8().ok()? {
            b'!' => Err(unreadable(item, reader.u8().ok()?)),
            tag => Ok(item.read(tag, &mut reader).ok()?),
        });
    }
    reader.is_empty().then_some(answers)
}

fn unreadable<A: Ask>(item: &A, form: u8) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        A::OPERATION,
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
        "the item is larger than 256 MiB; keep smaller results with max_result_bytes",
    )
}

fn too_few_replicas(operation: &'static str, count: i64, wanted: i64) -> Error {
    Error::new(
        ErrorKind::Timeout,
        operation,
        format!(
            "{count} of {wanted} replicas confirmed it in time; it is written, but a failover may lose it. \
             If that lasts, see to the replicas, or lower wait_replicas"
        ),
    )
}
