//! The servers of a store, and which of them holds which keys: [`Network`].

pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod detached;
pub(crate) mod node;
pub(crate) mod plain_stream;
pub(crate) mod replication;
pub(crate) mod reply_limits;
pub(crate) mod sentinel;
pub(crate) mod server;
pub(crate) mod slots;

use std::sync::Arc;

use onceward::Error;
use redis::aio::ConnectionManager;

use crate::config::{RedisConfig, RedisOptions};
use crate::endpoint::target::{RedisTarget, TargetServers};
use crate::network::cluster::Cluster;
use crate::network::connect::RedisConnector;
use crate::network::node::ClusterNode;
use crate::network::server::RedisServer;
use crate::network::slots::slot_of;

/// The servers of a store.
#[derive(Debug)]
pub(crate) enum Network {
    /// A single server; `has_sentinels` is true if Sentinels may replace it.
    Single {
        server: Arc<RedisServer>,
        has_sentinels: bool,
    },
    Cluster(Box<Cluster>),
}

impl Network {
    /// The servers of `config`. Does not connect.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if values of the endpoint are invalid or disagree.
    pub(crate) fn open(config: &RedisConfig) -> Result<Self, Error> {
        let target = Arc::new(RedisTarget::resolve(&config.endpoint)?);
        let connector = match &target.servers {
            TargetServers::Cluster(urls) => {
                let cluster = Cluster::new(urls, &target, &config.options)?;
                return Ok(Self::Cluster(Box::new(cluster)));
            }
            TargetServers::Standalone(url) => RedisConnector::to_url(&target, url)?,
            TargetServers::Sentinel { sentinels, primary } => {
                RedisConnector::to_primary(&target, sentinels, primary)?
            }
        };
        let has_sentinels = matches!(target.servers, TargetServers::Sentinel { .. });
        let server = RedisServer::new(connector, &config.options, false);
        Ok(Self::Single { server: Arc::new(server), has_sentinels })
    }

    /// The server of a client that the caller has built.
    pub(crate) fn from_client(client: redis::Client, options: &RedisOptions) -> Self {
        Self::single(RedisConnector::Client(Box::new(client)), options)
    }

    /// The server of a connection that the caller has opened.
    pub(crate) fn from_connection(connection: ConnectionManager, options: &RedisOptions) -> Self {
        Self::single(RedisConnector::Managed(connection), options)
    }

    fn single(connector: RedisConnector, options: &RedisOptions) -> Self {
        let server = RedisServer::new(connector, options, false);
        Self::Single { server: Arc::new(server), has_sentinels: false }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    pub(crate) fn has_sentinels(&self) -> bool {
        matches!(self, Self::Single { has_sentinels: true, .. })
    }

    /// The server that holds `key`, as far as is known.
    ///
    /// # Errors
    /// The owners of the slots cannot be read, or no node owns the slot.
    pub(crate) async fn owner_of(
        &self,
        operation: &'static str,
        key: &[u8],
    ) -> Result<Arc<RedisServer>, Error> {
        match self {
            Self::Single { server, .. } => Ok(Arc::clone(server)),
            Self::Cluster(cluster) => cluster.owner_of(operation, slot_of(key)).await,
        }
    }

    /// The node that a redirection names.
    ///
    /// # Errors
    /// Its address cannot be used.
    pub(crate) fn node(&self, node: &ClusterNode) -> Result<Arc<RedisServer>, Error> {
        match self {
            Self::Single { server, .. } => Ok(Arc::clone(server)),
            Self::Cluster(cluster) => cluster.node(node),
        }
    }

    /// Records that keys have moved, or that their node does not respond: the next call reads the slots again.
    pub(crate) fn mark_stale(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.mark_stale();
        }
    }

    /// All primaries with their names; a single server has none.
    ///
    /// # Errors
    /// The owners of the slots cannot be read.
    pub(crate) async fn all(
        &self,
        operation: &'static str,
    ) -> Result<Vec<(Option<ClusterNode>, Arc<RedisServer>)>, Error> {
        match self {
            Self::Single { server, .. } => Ok(vec![(None, Arc::clone(server))]),
            Self::Cluster(cluster) => {
                let nodes = cluster.all(operation).await?;
                Ok(nodes.into_iter().map(|(node, server)| (Some(node), server)).collect())
            }
        }
    }
}
