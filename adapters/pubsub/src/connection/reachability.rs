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
    /// `Unavailable` if the server does not accept a connection within 3 s.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        let operation = || format!("connect to {}:{}", self.host, self.port);
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        match tokio::time::timeout(CONNECT_LIMIT, connect).await {
            Ok(Ok(_)) => Ok(()),
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
