//! Nodes of a cluster, and the redirections that name them: [`ClusterNode`].

use std::fmt;

use redis::{RedisError, ServerErrorKind};

/// The address of a primary of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClusterNode {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for ClusterNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The node that a MOVED or ASK redirection names.
pub(crate) fn redirected_node(error: &RedisError) -> Option<ClusterNode> {
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    Some(ClusterNode { host: host.trim_matches(['[', ']']).to_owned(), port: port.parse().ok()? })
        .filter(|node| !node.host.is_empty())
}

/// True if `error` is a server error of this kind.
pub(crate) fn is_server_error(error: &RedisError, kind: ServerErrorKind) -> bool {
    error.kind() == redis::ErrorKind::Server(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_name_a_node() {
        let node = |reply: &[u8]| {
            let error = redis::parse_redis_value(reply).unwrap().extract_error().unwrap_err();
            redirected_node(&error).map(|node| node.to_string())
        };
        assert_eq!(node(b"-MOVED 3999 127.0.0.1:6381\r\n").as_deref(), Some("127.0.0.1:6381"));
        assert_eq!(node(b"-ASK 3999 fd00::1:6381\r\n").as_deref(), Some("fd00::1:6381"));
        assert_eq!(node(b"-MOVED 3999 :6381\r\n"), None);
        assert_eq!(node(b"-ERR no\r\n"), None);
    }
}
