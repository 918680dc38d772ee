//! Calls of scripts: a batch becomes one call for each server, and is whole again afterwards: [`Caller`].

use std::sync::Arc;

use futures_util::future::join_all;
use onceward::{Error, ErrorKind, Scope};
use redis::{Cmd, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::OnceCell;

use crate::ask::Ask;
use crate::config::{RedisConfig, Settings};
use crate::confirm::{Confirmation, Confirmer, History};
use crate::error::{garbled, store_error};
use crate::group::{Group, Groups};
use crate::keys::{Keyspace, ScopeTag};
use crate::link::Link;
use crate::network::{Network, is_server, named_node};
use crate::wire::Reader;

/// How often a call may be sent elsewhere, or again with its script's text, before it is left to the caller to repeat.
const ROUNDS: usize = 6;

/// Asks scripts, over the network of one store.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) network: Network,
    pub(crate) space: Keyspace,
    pub(crate) settings: Settings,
    pub(crate) format: OnceCell<()>,
    pub(crate) has_sentinels: bool,
}

/// The answers of a batch, as they come in.
type Answers<T> = Vec<Option<Result<T, Error>>>;

/// What became of a group: the script's reply, or the server's error, or no answer at all.
type Outcome = Result<RedisResult<Value>, Error>;

impl Caller {
    pub(crate) fn new(config: &RedisConfig) -> Result<Self, Error> {
        let space = config.validate()?;
        Ok(Self {
            network: Network::new(config)?,
            space,
            settings: config.settings.clone(),
            format: OnceCell::new(),
            has_sentinels: matches!(config.servers, crate::config::Servers::Sentinel { .. }),
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
            return items.iter().map(|_| Err(error.clone())).collect();
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
        let groups = Groups { space: &self.space, by_bucket: self.network.is_cluster(), tag, head, items };
        let mut answers: Answers<A::Answer> = items.iter().map(|_| None).collect();
        let mut open = groups.of(0..items.len());
        for _ in 0..ROUNDS {
            let mut again = Vec::new();
            for (group, outcome) in self.send::<A>(open).await {
                match outcome {
                    Ok(Ok(reply)) => unpack(items, &group, &reply, &mut answers),
                    Ok(Err(error)) => match elsewhere(&groups, &group, &error) {
                        Some(mut next) => {
                            self.network.doubt();
                            again.append(&mut next);
                        }
                        None if is_server(&error, ServerErrorKind::NoScript) && !group.with_text => {
                            again.push(group.with_text());
                        }
                        None => fail(&group, &store_error(A::OPERATION, error), &mut answers),
                    },
                    Err(error) => {
                        self.network.doubt();
                        fail(&group, &error, &mut answers);
                    }
                }
            }
            if again.is_empty() {
                return finish::<A>(answers, too_large);
            }
            open = again;
        }
        finish::<A>(answers, still_moving)
    }

    /// Sends a command about one key that is no record, wherever that is.
    pub(crate) async fn command(
        &self,
        operation: &'static str,
        command: &Cmd,
        name: &[u8],
    ) -> Result<Value, Error> {
        let mut asking = None;
        for _ in 0..ROUNDS {
            let mut pipeline = redis::pipe();
            let link = match &asking {
                Some(node) => {
                    pipeline.cmd("ASKING");
                    self.network.link_to(node)?
                }
                None => self.network.link_for(operation, name).await?,
            };
            pipeline.add_command(command.clone());
            let replies = link.send_all(operation, pipeline).await.inspect_err(|_| self.network.doubt())?;
            match replies.into_iter().next_back() {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(error)) if is_server(&error, ServerErrorKind::Moved) => {
                    self.network.doubt();
                    asking = None;
                }
                Some(Err(error)) if is_server(&error, ServerErrorKind::Ask) => asking = named_node(&error),
                Some(Err(error)) => return Err(store_error(operation, error)),
                None => return Err(garbled(operation)),
            }
        }
        Err(still_moving(operation))
    }

    /// Sends each group to its server, those of one server in one go.
    async fn send<A: Ask>(&self, groups: Vec<Group>) -> Vec<(Group, Outcome)> {
        let mut outcomes = Vec::with_capacity(groups.len());
        let mut shipments: Vec<(Arc<Link>, Vec<Group>)> = Vec::new();
        for group in groups {
            let link = match &group.asking {
                Some(node) => self.network.link_to(node),
                None => self.network.link_for(A::OPERATION, group.name()).await,
            };
            match link {
                Ok(link) => match shipments.iter_mut().find(|(to, _)| Arc::ptr_eq(to, &link)) {
                    Some((_, shipment)) => shipment.push(group),
                    None => shipments.push((link, vec![group])),
                },
                Err(error) => outcomes.push((group, Err(error))),
            }
        }
        let shipped =
            join_all(shipments.into_iter().map(|(link, groups)| self.ship::<A>(link, groups))).await;
        outcomes.extend(shipped.into_iter().flatten());
        outcomes
    }

    /// One round trip to one server.
    async fn ship<A: Ask>(&self, link: Arc<Link>, groups: Vec<Group>) -> Vec<(Group, Outcome)> {
        let mut pipeline = redis::pipe();
        let mut places = Vec::with_capacity(groups.len());
        for group in &groups {
            if group.asking.is_some() {
                pipeline.cmd("ASKING");
            }
            places.push(pipeline.len());
            pipeline.add_command(group.command(A::script()));
        }
        let confirmer = link.confirmer().filter(|_| A::IS_PROMISE);
        if confirmer.is_some() {
            History::ask(&mut pipeline);
        }
        let mut replies = match link.send_all(A::OPERATION, pipeline).await {
            Ok(replies) => replies,
            Err(error) => return each(groups, || Err(error.clone())),
        };
        let confirmed = match (confirmer, groups.first()) {
            (Some(confirmer), Some(group)) => {
                let history = History::read(A::OPERATION, replies.pop());
                // What was refused altogether waits for nobody.
                if replies.iter().all(Result::is_err) {
                    Ok(())
                } else {
                    self.confirmed(A::OPERATION, &link, confirmer, history, group).await
                }
            }
            _ => Ok(()),
        };
        let mut take = |place: usize| match replies.get_mut(place) {
            Some(reply) => {
                let reply = std::mem::replace(reply, Ok(Value::Nil));
                // What was refused waits for nobody.
                if reply.is_ok()
                    && let Err(error) = &confirmed
                {
                    return Err(error.clone());
                }
                Ok(reply)
            }
            None => Err(garbled(A::OPERATION)),
        };
        groups.into_iter().zip(places).map(|(group, place)| (group, take(place))).collect()
    }

    /// Waits until the replicas have what was written for `group` and before.
    async fn confirmed(
        &self,
        operation: &'static str,
        link: &Link,
        confirmer: &Confirmer,
        history: Result<History, Error>,
        group: &Group,
    ) -> Result<(), Error> {
        let (history, mark) = (history?, self.space.wait(group.bucket));
        let confirmation = match history.is_of_a_primary() {
            true => confirmer.confirm(operation, &history, mark, group.asking.is_some()).await?,
            false => Confirmation::AnotherPrimary,
        };
        match confirmation {
            Confirmation::Confirmed => Ok(()),
            Confirmation::TooFew(count) => {
                Err(too_few_replicas(operation, count, self.settings.wait_replicas))
            }
            Confirmation::AnotherPrimary => {
                link.drop_connection();
                let what = "another server became the primary just now; whether it has the write is unknown";
                Err(Error::new(ErrorKind::Timeout, operation, what))
            }
        }
    }
}

fn each(groups: Vec<Group>, outcome: impl Fn() -> Outcome) -> Vec<(Group, Outcome)> {
    groups.into_iter().map(|group| (group, outcome())).collect()
}

/// The groups to send instead, if the server says that the keys are not, or not all, with it.
fn elsewhere<A: Ask>(groups: &Groups<'_, A>, group: &Group, error: &RedisError) -> Option<Vec<Group>> {
    if is_server(error, ServerErrorKind::Moved) {
        // The slots are looked up again before it is sent.
        return Some(vec![group.not_asking()]);
    }
    // While a slot moves, its keys are on two nodes; each alone is served by one of them.
    if is_server(error, ServerErrorKind::Ask) {
        let node = named_node(error)?;
        let alone = groups.alone(group);
        return Some(alone.map(|group| group.asking(node.clone())).collect());
    }
    (is_server(error, ServerErrorKind::TryAgain) && group.places.len() > 1)
        .then(|| groups.alone(group).collect())
}

/// Sets the answers of a reply.
fn unpack<A: Ask>(items: &[A], group: &Group, reply: &Value, answers: &mut Answers<A::Answer>) {
    match read(items, group, reply) {
        Some(read) => {
            for (place, answer) in group.places.iter().zip(read) {
                answers[*place] = Some(answer);
            }
        }
        None => fail(group, &garbled(A::OPERATION), answers),
    }
}

/// The answers of a reply; `None` if it is not one of ours.
fn read<A: Ask>(items: &[A], group: &Group, reply: &Value) -> Option<Vec<Result<A::Answer, Error>>> {
    let Value::BulkString(bytes) = reply else { return None };
    let mut reader = Reader::new(bytes);
    let mut answers = Vec::with_capacity(group.places.len());
    for place in &group.places {
        let item = &items[*place];
        answers.push(match reader.u8().ok()? {
            b'!' => Err(unreadable(item, reader.u8().ok()?)),
            tag => Ok(item.read(tag, &mut reader).ok()?),
        });
    }
    reader.is_empty().then_some(answers)
}

fn fail<T>(group: &Group, error: &Error, answers: &mut Answers<T>) {
    for place in &group.places {
        answers[*place] = Some(Err(error.clone()));
    }
}

fn finish<A: Ask>(
    answers: Answers<A::Answer>,
    missing: fn(&'static str) -> Error,
) -> Vec<Result<A::Answer, Error>> {
    answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(missing(A::OPERATION)))).collect()
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

fn still_moving(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the keys' slots are moving between nodes of the cluster")
}

fn too_few_replicas(operation: &'static str, count: u32, wanted: u32) -> Error {
    Error::new(
        ErrorKind::Timeout,
        operation,
        format!(
            "{count} of {wanted} replicas confirmed it in time; it is written, but a failover may lose it. \
             If that lasts, see to the replicas, or lower wait_replicas"
        ),
    )
}
