//! Opens connections by address, with or without TLS: [`AmqpConnector`].

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use onceward::Error;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::connection::endpoint::{DEFAULT_FRAME_MAX, RabbitmqEndpoint};
use crate::error;
use crate::sanitize::defects::Defects;
use crate::sanitize::transport::{SanitizedTransport, Socket, TransportRuntime};

/// A connection, and the defects of deliveries on it; a connection of the caller is not sanitised.
pub(crate) struct OpenConnection {
    pub(crate) connection: Connection,
    pub(crate) defects: Arc<Defects>,
}

/// Opens connections.
#[async_trait]
pub(crate) trait AmqpConnector: Send + Sync + 'static {
    async fn connect(&self) -> Result<OpenConnection, Error>;
}

#[async_trait]
impl AmqpConnector for RabbitmqEndpoint {
    async fn connect(&self) -> Result<OpenConnection, Error> {
        let deadline = Instant::now() + self.connect_timeout;
        let uri = self.current_uri().await?;
        let operation = format!("connect to RabbitMQ at {}:{}", uri.authority.host, uri.authority.port);
        match tokio::time::timeout_at(deadline, self.open(uri, &operation, deadline)).await {
            Ok(connected) => connected,
            Err(_) => {
                let what =
                    format!("no answer within {:?}; check host, port and firewall", self.connect_timeout);
                Err(error::timeout(operation, what))
            }
        }
    }
}

impl RabbitmqEndpoint {
    async fn open(&self, uri: AMQPUri, operation: &str, deadline: Instant) -> Result<OpenConnection, Error> {
        let failed = |error: io::Error| error::classify_io(operation.to_owned(), &error);
        let stream = connect_host(&uri.authority.host, uri.authority.port, deadline).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let (stream, shutdown_guard) = ShutdownGuard::new(stream).map_err(failed)?;
        let socket = match uri.scheme {
            AMQPScheme::AMQP => Socket::Left(stream),
            AMQPScheme::AMQPS => Socket::Right(Box::new(self.encrypt(stream, &uri, operation).await?)),
        };
        let defects = Arc::<Defects>::default();
        let frame_max = uri.query.frame_max.unwrap_or(DEFAULT_FRAME_MAX);
        let transport = Mutex::new(Some(SanitizedTransport::new(socket, Arc::clone(&defects), frame_max)));
        let take = async move |_, _| {
            let transport = transport.lock().unwrap_or_else(PoisonError::into_inner).take();
            let transport = transport.ok_or_else(|| io::Error::other("the transport is used once"))?;
            Ok(AsyncTcpStream::Plain(transport))
        };
        let properties = ConnectionProperties::default().with_connection_name("onceward".into());
        let connection = Connection::connector(uri, TransportRuntime::current(), take, properties).await;
        let connection = connection.map_err(|error| error::classify(operation.to_owned(), error))?;
        shutdown_guard.disarm();
        Ok(OpenConnection { connection, defects })
    }

    async fn encrypt(
        &self,
        stream: TcpStream,
        uri: &AMQPUri,
        operation: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Error> {
        let host = uri.authority.host.clone();
        let name = ServerName::try_from(host).map_err(|_| {
            error::config(operation.to_owned(), "the host is neither a DNS name nor an IP address")
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| {
                error::config("use TLS", "no TLS protocol version is available").with_source(error)
            })?
            .with_root_certificates(self.load_root_certificates()?)
            .with_no_client_auth();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        connected.map_err(|error| {
            let what = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_)) => {
                    "the broker's certificate is invalid for this host or not signed by a trusted authority; \
                     set the CA file to the authority's certificate, and the host to the name in the certificate"
                }
                Some(_) => "the TLS handshake failed; check that the port is the broker's TLS port (5671 by default)",
                None => "the connection was closed during the TLS handshake; check that the port is the broker's TLS port",
            };
            Error::new(onceward::ErrorKind::Unavailable, operation.to_owned(), what).with_source(error)
        })
    }

    fn load_root_certificates(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.ca_file else {
            let native = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(native.certs);
            if roots.is_empty() {
                let what =
                    "the system trusts no certificate authority; install certificates, or set a CA file";
                return Err(error::config("use TLS", what));
            }
            return Ok(roots);
        };
        let operation = || format!("read the CA file {}", path.display());
        let unreadable = |error| {
            error::config(operation(), "the file contains no readable PEM certificates; check the path")
                .with_source(error)
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            let added = roots.add(certificate.map_err(unreadable)?);
            added.map_err(|error| {
                error::config(operation(), "a certificate in it is malformed").with_source(error)
            })?;
        }
        if roots.is_empty() {
            return Err(error::config(operation(), "the file contains no certificate"));
        }
        Ok(roots)
    }
}

/// Connects to the first address of a host that accepts. Each address gets an equal share of the remaining time.
async fn connect_host(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    connect_first(&addresses, deadline).await
}

async fn connect_first(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let share =
            deadline.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::Error::new(io::ErrorKind::TimedOut, "the address does not answer"),
        }
    }
    Err(failed)
}

/// Shuts down the socket of a connection attempt that was abandoned: the library's thread would otherwise wait forever.
struct ShutdownGuard(Option<std::net::TcpStream>);

impl ShutdownGuard {
    fn new(stream: TcpStream) -> io::Result<(TcpStream, Self)> {
        let stream = stream.into_std()?;
        let second = stream.try_clone()?;
        Ok((TcpStream::from_std(stream)?, Self(Some(second))))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_unresponsive_address_leaves_time_for_the_next() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Its backlog is full: further connections get no answer.
        let full = tokio::net::TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(0).unwrap();
        let silent = full.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(silent)).await
        {
            waiting.push(connected.unwrap());
            assert!(waiting.len() < 100, "the queue of connections never fills");
        }
        let answers = listener.local_addr().unwrap();
        let deadline = Instant::now() + Duration::from_secs(4);
        let stream = connect_first(&[silent, answers], deadline).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), answers);
    }
}
