//! Which server holds which keys: one server, or the nodes of a cluster: [`Network`].
//!
//! The client's own cluster connection is not used. It sends ASKING apart from the command that needs it, so that a busy
//! connection loses it on the way; and while one node is down it holds up the calls to all others, because it looks for
//! the slots again and again. Here every node has a [`Link`] of its own, and of the 16,384 slots only 64 are ours.

pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod detached;
pub(crate) mod plain_stream;
pub(crate) mod replication;
pub(crate) mod reply_limits;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Lock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::select_ok;
use onceward::{Error, ErrorKind};
use redis::{RedisError, ServerErrorKind, Value};
use tokio::sync::Mutex;

use crate::config::{RedisConfig, Servers};
use crate::error::garbled;
use crate::network::connect::Connector;
use crate::network::connection::Link;

/// A primary of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Node {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// All servers of a store.
#[derive(Debug)]
pub(crate) enum Network {
    Single(Arc<Link>),
    Cluster(Box<Cluster>),
}

/// Where the servers of a cluster are, and which slots each has.
pub(crate) struct Cluster {
    config: RedisConfig,
    seeds: Vec<Node>,
    links: Lock<HashMap<Node, Arc<Link>>>,
    slots: RwLock<Option<Arc<Slots>>>,
    /// The slots have been seen to be elsewhere, or their node not to answer.
    is_stale: AtomicBool,
    looking: Mutex<Option<Instant>>,
}

/// Ranges of slots and their primaries.
type Slots = Vec<(u16, u16, Node)>;

/// The slots are looked up no more often than this.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// The slot of a key: CRC16 (XMODEM) of what stands between its first braces, or of the whole.
pub(crate) fn slot(name: &[u8]) -> u16 {
    let tag = name.iter().position(|byte| *byte == b'{').and_then(|open| {
        let inner = &name[open + 1..];
        let length = inner.iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &inner[..length])
    });
    let mut crc = 0_u16;
    for byte in tag.unwrap_or(name) {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
        }
    }
    crc % 16_384
}

impl Network {
    pub(crate) fn new(config: &RedisConfig) -> Result<Self, Error> {
        let Servers::Cluster(urls) = &config.servers else {
            let link = Link::new(Connector::of(config)?, &config.settings, false);
            return Ok(Self::Single(Arc::new(link)));
        };
        let seeds: Vec<Node> = urls
            .iter()
            .map(|url| Node {
                host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
                port: url.port().unwrap_or(6379),
            })
            .collect();
        let cluster = Cluster {
            config: config.clone(),
            seeds,
            links: Lock::default(),
            slots: RwLock::default(),
            is_stale: AtomicBool::new(false),
            looking: Mutex::default(),
        };
        // A certificate that is none shows here, not with the first call.
        for seed in &cluster.seeds {
            cluster.link(seed)?;
        }
        Ok(Self::Cluster(Box::new(cluster)))
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// The link to the server that holds `name`, as far as is known.
    pub(crate) async fn link_for(&self, operation: &'static str, name: &[u8]) -> Result<Arc<Link>, Error> {
        match self {
            Self::Single(link) => Ok(Arc::clone(link)),
            Self::Cluster(cluster) => cluster.link_for(operation, slot(name)).await,
        }
    }

    /// The link to a node that another one has named.
    pub(crate) fn link_to(&self, node: &Node) -> Result<Arc<Link>, Error> {
        match self {
            Self::Single(link) => Ok(Arc::clone(link)),
            Self::Cluster(cluster) => cluster.link(node),
        }
    }

    /// Says that keys are not where they were, or their node does not answer: the next call looks again.
    pub(crate) fn doubt(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.is_stale.store(true, Ordering::Relaxed);
        }
    }

    /// All primaries; the only server has no name.
    pub(crate) async fn all(&self, operation: &'static str) -> Result<Vec<(Option<Node>, Arc<Link>)>, Error> {
        match self {
            Self::Single(link) => Ok(vec![(None, Arc::clone(link))]),
            Self::Cluster(cluster) => {
                let slots = cluster.slots(operation).await?;
                let mut nodes: Vec<Node> = slots.iter().map(|(_, _, node)| node.clone()).collect();
                nodes.sort();
                nodes.dedup();
                nodes.into_iter().map(|node| Ok((Some(node.clone()), cluster.link(&node)?))).collect()
            }
        }
    }
}

impl Cluster {
    fn link(&self, node: &Node) -> Result<Arc<Link>, Error> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(node) {
            return Ok(Arc::clone(link));
        }
        let connector = Connector::to_node(&self.config, node)?;
        let link = Arc::new(Link::new(connector, &self.config.settings, true));
        links.insert(node.clone(), Arc::clone(&link));
        Ok(link)
    }

    async fn link_for(&self, operation: &'static str, slot: u16) -> Result<Arc<Link>, Error> {
        let slots = self.slots(operation).await?;
        let holder = slots.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        match holder {
            Some((_, _, node)) => self.link(node),
            None => {
                self.is_stale.store(true, Ordering::Relaxed);
                Err(Error::new(
                    ErrorKind::Unavailable,
                    operation,
                    format!("no node of the cluster has slot {slot} now"),
                ))
            }
        }
    }

    fn known(&self) -> Option<Arc<Slots>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The slots as far as is known; looks them up if they are not, or are in doubt. If nobody answers, the old ones
    /// will do: most of them are still right.
    async fn slots(&self, operation: &'static str) -> Result<Arc<Slots>, Error> {
        if let Some(known) = self.known()
            && !self.is_stale.load(Ordering::Relaxed)
        {
            return Ok(known);
        }
        let mut looked = match self.looking.try_lock() {
            Ok(looked) => looked,
            // Another call looks: what is known will do meanwhile.
            Err(_) => match self.known() {
                Some(known) => return Ok(known),
                None => self.looking.lock().await,
            },
        };
        if let Some(known) = self.known()
            && (!self.is_stale.load(Ordering::Relaxed)
                || looked.is_some_and(|when| when.elapsed() < LOOK_PAUSE))
        {
            return Ok(known);
        }
        let found = self.look(operation).await;
        *looked = Some(Instant::now());
        match (found, self.known()) {
            (Ok(found), _) => {
                let found = Arc::new(found);
                self.forget_links_but(&found);
                *self.slots.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&found));
                self.is_stale.store(false, Ordering::Relaxed);
                Ok(found)
            }
            (Err(_), Some(known)) => Ok(known),
            (Err(error), None) => Err(error),
        }
    }

    /// Asks all nodes at once; the first answer counts.
    async fn look(&self, operation: &'static str) -> Result<Slots, Error> {
        let mut nodes: Vec<Node> = self.seeds.clone();
        nodes.extend(self.known().iter().flat_map(|slots| slots.iter()).map(|(_, _, node)| node.clone()));
        nodes.sort();
        nodes.dedup();
        let mut pipeline = redis::pipe();
        pipeline.cmd("CLUSTER").arg("SLOTS");
        let pipeline = &pipeline;
        let asked = nodes.iter().map(|node| {
            async move {
                let reply = self.link(node)?.send_all(operation, pipeline.clone()).await?.pop();
                match reply {
                    Some(Ok(reply)) => ranges(reply, node).ok_or_else(|| garbled(operation)),
                    Some(Err(error)) => Err(crate::error::store_error(operation, error)),
                    None => Err(garbled(operation)),
                }
            }
            .boxed()
        });
        // There is at least one: the configuration was checked.
        let (slots, _) = select_ok(asked).await?;
        Ok(slots)
    }

    fn forget_links_but(&self, slots: &Slots) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|node, _| self.seeds.contains(node) || slots.iter().any(|(_, _, of)| of == node));
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("seeds", &self.seeds)
            .field("slots", &self.known())
            .finish_non_exhaustive()
    }
}

/// `CLUSTER SLOTS`: ranges, each with its primary first. A node that does not know its own host leaves it empty.
fn ranges(reply: Value, asked: &Node) -> Option<Slots> {
    let Value::Array(ranges) = reply else { return None };
    ranges
        .into_iter()
        .map(|range| {
            let Value::Array(range) = range else { return None };
            let mut range = range.into_iter();
            let first: u16 = redis::from_redis_value(range.next()?).ok()?;
            let last: u16 = redis::from_redis_value(range.next()?).ok()?;
            let Value::Array(primary) = range.next()? else { return None };
            let mut primary = primary.into_iter();
            let host: Option<String> = redis::from_redis_value(primary.next()?).ok()?;
            let port: u16 = redis::from_redis_value(primary.next()?).ok()?;
            let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| asked.host.clone());
            Some((first, last, Node { host, port }))
        })
        .collect()
}

/// The node that MOVED or ASK names.
pub(crate) fn named_node(error: &RedisError) -> Option<Node> {
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    Some(Node { host: host.trim_matches(['[', ']']).to_owned(), port: port.parse().ok()? })
        .filter(|node| !node.host.is_empty())
}

/// True if `error` is this answer of the server.
pub(crate) fn is_server(error: &RedisError, kind: ServerErrorKind) -> bool {
    error.kind() == redis::ErrorKind::Server(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // From the cluster specification and a server's CLUSTER KEYSLOT.
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"foo{}{bar}"), slot(b"foo{}{bar}"));
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
    }

    #[test]
    fn redirections_name_a_node() {
        let node = |reply: &[u8]| {
            let error = redis::parse_redis_value(reply).unwrap().extract_error().unwrap_err();
            named_node(&error).map(|node| node.to_string())
        };
        assert_eq!(node(b"-MOVED 3999 127.0.0.1:6381\r\n").as_deref(), Some("127.0.0.1:6381"));
        assert_eq!(node(b"-ASK 3999 fd00::1:6381\r\n").as_deref(), Some("fd00::1:6381"));
        assert_eq!(node(b"-MOVED 3999 :6381\r\n"), None);
        assert_eq!(node(b"-ERR no\r\n"), None);
    }
}
