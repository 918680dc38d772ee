//! Checks that the server accepts connections: [`Reachability`].
//!
//! The client library reconnects by itself, and reports nothing while it does.

use std::time::Duration;

use onceward::{Error, ErrorKind};
use tokio::net::TcpStream;
use url::Url;

use crate::connection::endpoint::PubsubEndpoint;
use crate::error;

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// How long a connection must last. A proxy without a server behind it accepts and closes.
const STEADY: Duration = Duration::from_millis(250);

/// The address of the server.
#[derive(Clone, Debug)]
pub(crate) struct Reachability {
    host: String,
    port: u16,
}

impl Reachability {
    pub(crate) fn of(endpoint: &PubsubEndpoint) -> Result<Self, Error> {
        let address = endpoint.address()?;
        let invalid = || error::config("use the Pub/Sub endpoint", "it is not a URL with a host; correct it");
        let url = Url::parse(&address).map_err(|_| invalid())?;
        let host = url.host_str().ok_or_else(invalid)?.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: url.port_or_known_default().ok_or_else(invalid)? })
    }

    /// Connects and disconnects.
    ///
    /// # Errors
    /// `Unavailable` if the server does not accept a connection within 3 s, or closes it at once.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        let operation = || format!("connect to {}:{}", self.host, self.port);
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        match tokio::time::timeout(CONNECT_LIMIT, connect).await {
            Ok(Ok(connection)) => match tokio::time::timeout(STEADY, connection.peek(&mut [0])).await {
                Ok(Ok(1..)) | Err(_) => Ok(()),
                Ok(Ok(0) | Err(_)) => {
                    let what = "the server closes connections; check what is in front of it";
                    Err(Error::new(ErrorKind::Unavailable, operation(), what))
                }
            },
            Ok(Err(error)) => {
                let what = "the server is not reachable; check endpoint and network";
                Err(Error::new(ErrorKind::Unavailable, operation(), what).with_source(error))
            }
            Err(_) => {
                let what = "no answer within 3 s; check endpoint and network";
                Err(Error::new(ErrorKind::Unavailable, operation(), what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_server_that_closes_connections_at_once_is_not_reachable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Reachability { host: "127.0.0.1".to_owned(), port };
        let closing = async { drop(listener.accept().await.unwrap()) };
        let (closed, ()) = tokio::join!(server.check(), closing);
        assert_eq!(closed.unwrap_err().kind(), ErrorKind::Unavailable);

        let (kept, connection) = tokio::join!(server.check(), listener.accept());
        kept.unwrap();
        drop((connection, listener));
        assert_eq!(server.check().await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
