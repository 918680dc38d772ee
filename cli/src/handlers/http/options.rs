//! The options of the HTTP handler: [`HttpOptions`].

use std::fmt;
use std::time::Duration;

use onceward::Scope;

use crate::handlers::meaning::Statuses;

/// The default lifetime of an idle connection. A request on a connection that the server closes at the same moment is lost
/// with an unknown outcome, and many servers (Node.js, uvicorn, Apache) close theirs after 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// The options of an [`HttpHandler`](super::HttpHandler). `Debug` omits the URL, which may contain secrets.
#[derive(Clone)]
pub struct HttpOptions {
    /// The scope, sent as `Onceward-Scope`.
    pub scope: Scope,
    /// The URL, `http` or `https`, with `user:password@` for Basic authentication.
    pub url: String,
    /// Headers of every request, such as `Authorization`. They replace headers of the message.
    pub headers: Vec<(String, String)>,
    /// The time limit of a request, including its response.
    pub timeout: Duration,
    /// The time limit for opening a connection; at most three quarters of `timeout`, so that an unreachable server is
    /// distinguished from one that does not respond.
    pub connect_timeout: Duration,
    /// The lifetime of an idle connection; zero opens a connection for each message.
    pub keep_alive: Duration,
    /// The meanings of statuses that differ from the default.
    pub statuses: Statuses,
    /// The most idle connections: as many as messages are handled concurrently.
    pub idle_connections: usize,
    /// The most messages in one request. From 2 on the body is a JSON array, and so is the response. 0 means 1.
    pub batch: u32,
    /// Keeps the body of a 2xx response as the result, up to this many bytes; `None` discards it.
    pub keep_body: Option<usize>,
}

impl HttpOptions {
    /// 30 s for an exchange, 10 s for a connection, 16 idle connections kept for 4 s, the default statuses, no result.
    pub fn new(scope: Scope, url: impl Into<String>) -> Self {
        Self {
            scope,
            url: url.into(),
            headers: Vec::new(),
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            keep_alive: KEEP_ALIVE,
            statuses: Statuses::default(),
            idle_connections: 16,
            batch: 1,
            keep_body: None,
        }
    }
}

impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpOptions")
            .field("scope", &self.scope)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("keep_alive", &self.keep_alive)
            .field("statuses", &self.statuses)
            .field("idle_connections", &self.idle_connections)
            .field("batch", &self.batch)
            .field("keep_body", &self.keep_body)
            .finish_non_exhaustive()
    }
}
