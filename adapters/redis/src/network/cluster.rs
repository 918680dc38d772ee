//! A cluster client: one connection for each node, and a map of the slots: [`Cluster`].
//!
//! The cluster connection of the `redis` crate is not used: it sends ASKING and the redirected command apart, so that
//! another command on the connection can consume the flag, and it blocks calls to all nodes while it reconnects to one
//! (decision 17). Here each node has a [`RedisServer`] of its own, and only 64 of the 16,384 slots are used.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::select_ok;
use onceward::{Error, ErrorKind};
use parking_lot::RwLock;
use url::Url;

use crate::config::RedisOptions;
use crate::endpoint::target::RedisTarget;
use crate::error::{classify, invalid_reply};
use crate::network::connect::RedisConnector;
use crate::network::node::ClusterNode;
use crate::network::server::RedisServer;
use crate::network::slots::{SlotMap, parse_slots};

/// The shortest time between two reads of the slots.
const SLOTS_INTERVAL: Duration = Duration::from_millis(50);

/// The nodes of a cluster, and which slots each of them owns.
pub(crate) struct Cluster {
    target: Arc<RedisTarget>,
    options: RedisOptions,
    seeds: Vec<ClusterNode>,
    servers: parking_lot::Mutex<HashMap<ClusterNode, Arc<RedisServer>>>,
    slots: RwLock<Option<Arc<SlotMap>>>,
    /// Keys were found to have moved, or their node does not respond.
    is_stale: AtomicBool,
    /// When the slots were read last; locked while they are read.
    last_read: tokio::sync::Mutex<Option<Instant>>,
}

impl Cluster {
    /// The cluster that the nodes at `urls` belong to. Does not connect.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if an address or certificate is invalid.
    pub(crate) fn new(
        urls: &[Url],
        target: &Arc<RedisTarget>,
        options: &RedisOptions,
    ) -> Result<Self, Error> {
        let to_node = |url: &Url| ClusterNode {
            host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(6379),
        };
        let cluster = Self {
            target: Arc::clone(target),
            options: options.clone(),
            seeds: urls.iter().map(to_node).collect(),
            servers: parking_lot::Mutex::default(),
            slots: RwLock::default(),
            is_stale: AtomicBool::new(false),
            last_read: tokio::sync::Mutex::default(),
        };
        // Fail on an invalid certificate now, not at the first call.
        for seed in &cluster.seeds {
            cluster.node(seed)?;
        }
        Ok(cluster)
    }

    /// The server of `node`, created if it is new.
    pub(crate) fn node(&self, node: &ClusterNode) -> Result<Arc<RedisServer>, Error> {
        let mut servers = self.servers.lock();
        if let Some(server) = servers.get(node) {
            return Ok(Arc::clone(server));
        }
        let connector = RedisConnector::to_node(&self.target, node)?;
        let server = Arc::new(RedisServer::new(connector, &self.options, true));
        servers.insert(node.clone(), Arc::clone(&server));
        Ok(server)
    }

    pub(crate) fn mark_stale(&self) {
        self.is_stale.store(true, Ordering::Relaxed);
    }

    /// The server that owns `slot`.
    pub(crate) async fn owner_of(
        &self,
        operation: &'static str,
        slot: u16,
    ) -> Result<Arc<RedisServer>, Error> {
        let slots = self.slots(operation).await?;
        let owner = slots.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        match owner {
            Some((_, _, node)) => self.node(node),
            None => {
                self.mark_stale();
                Err(Error::new(
                    ErrorKind::Unavailable,
                    operation,
                    format!("no node of the cluster owns slot {slot} at the moment"),
                ))
            }
        }
    }

    /// All primaries.
    pub(crate) async fn all(
        &self,
        operation: &'static str,
    ) -> Result<Vec<(ClusterNode, Arc<RedisServer>)>, Error> {
        let slots = self.slots(operation).await?;
        let mut nodes: Vec<ClusterNode> = slots.iter().map(|(_, _, node)| node.clone()).collect();
        nodes.sort();
        nodes.dedup();
        nodes.into_iter().map(|node| Ok((node.clone(), self.node(&node)?))).collect()
    }

    fn known_slots(&self) -> Option<Arc<SlotMap>> {
        self.slots.read().clone()
    }

    /// The slot map; read from the cluster if it is unknown or stale. If no node responds, the stale map is returned: most
    /// of it is still right.
    async fn slots(&self, operation: &'static str) -> Result<Arc<SlotMap>, Error> {
        if let Some(known) = self.known_slots()
            && !self.is_stale.load(Ordering::Relaxed)
        {
            return Ok(known);
        }
        let mut last_read = match self.last_read.try_lock() {
            Ok(last_read) => last_read,
            // Another call is reading the slots: use the stale map meanwhile.
            Err(_) => match self.known_slots() {
                Some(known) => return Ok(known),
                None => self.last_read.lock().await,
            },
        };
        if let Some(known) = self.known_slots()
            && (!self.is_stale.load(Ordering::Relaxed)
                || last_read.is_some_and(|when| when.elapsed() < SLOTS_INTERVAL))
        {
            return Ok(known);
        }
        let read = self.read_slots(operation).await;
        *last_read = Some(Instant::now());
        match (read, self.known_slots()) {
            (Ok(slots), _) => {
                let slots = Arc::new(slots);
                self.remove_servers_not_in(&slots);
                *self.slots.write() = Some(Arc::clone(&slots));
                self.is_stale.store(false, Ordering::Relaxed);
                Ok(slots)
            }
            (Err(_), Some(known)) => Ok(known),
            (Err(error), None) => Err(error),
        }
    }

    /// Asks all nodes at once for the slots; the first answer counts.
    async fn read_slots(&self, operation: &'static str) -> Result<SlotMap, Error> {
        let mut nodes: Vec<ClusterNode> = self.seeds.clone();
        nodes.extend(
            self.known_slots().iter().flat_map(|slots| slots.iter()).map(|(_, _, node)| node.clone()),
        );
        nodes.sort();
        nodes.dedup();
        let mut pipeline = redis::pipe();
        pipeline.cmd("CLUSTER").arg("SLOTS");
        let pipeline = &pipeline;
        let requests = nodes.iter().map(|node| {
            async move {
                let server = self.node(node)?;
                let reply = server.connection.send_all(operation, pipeline.clone()).await?.pop();
                match reply {
                    Some(Ok(reply)) => parse_slots(reply, node).ok_or_else(|| invalid_reply(operation)),
                    Some(Err(error)) => Err(classify(operation, error)),
                    None => Err(invalid_reply(operation)),
                }
            }
            .boxed()
        });
        // There is at least one seed: the configuration was checked.
        let (slots, _) = select_ok(requests).await?;
        Ok(slots)
    }

    fn remove_servers_not_in(&self, slots: &SlotMap) {
        self.servers
            .lock()
            .retain(|node, _| self.seeds.contains(node) || slots.iter().any(|(_, _, owner)| owner == node));
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("seeds", &self.seeds)
            .field("slots", &self.known_slots())
            .finish_non_exhaustive()
    }
}
