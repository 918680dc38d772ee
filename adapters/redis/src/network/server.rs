//! Connections to one server: [`RedisServer`].

use crate::config::RedisOptions;
use crate::network::connect::RedisConnector;
use crate::network::connection::{SILENCE, ServerConnection};
use crate::network::replication::ReplicaWaiter;

/// One server that holds keys: a connection for commands, and one that waits for replicas.
#[derive(Debug)]
pub(crate) struct RedisServer {
    pub(crate) connection: ServerConnection,
    /// `None` if no replicas are waited for.
    pub(crate) replicas: Option<ReplicaWaiter>,
}

impl RedisServer {
    /// Does not connect. `is_cluster_node` says that other servers hold other keys.
    pub(crate) fn new(connector: RedisConnector, options: &RedisOptions, is_cluster_node: bool) -> Self {
        let replicas = (options.wait_replicas > 0).then(|| {
            // `WAIT` keeps its connection silent for as long as it waits.
            let silence = options.wait_timeout + SILENCE;
            let connection = ServerConnection::new(connector.clone(), options, silence, false);
            ReplicaWaiter::new(connection, options, is_cluster_node)
        });
        let silence = SILENCE.min(options.response_timeout / 3);
        Self { connection: ServerConnection::new(connector, options, silence, is_cluster_node), replicas }
    }
}
