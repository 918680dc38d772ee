//! Connections without TLS, whose replies are checked against [`ReplyLimits`] before the client parses them: [`connect`].
//!
//! With TLS the server is authenticated, and its replies are not checked.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::select_ok;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::SockRef};
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::network::reply_limits::ReplyLimits;

/// Aborts the task of a connection when its last handle is dropped.
#[derive(Clone)]
pub(crate) struct ConnectionDriver(
    #[allow(dead_code, reason = "it is there to be dropped")] Arc<AbortOnDrop>,
);

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects to the first address of `host` that accepts, and logs in.
///
/// # Errors
/// The name has no address, no address accepts, or the login fails.
pub(crate) async fn connect(
    client: &Client,
    (host, port): (&str, u16),
    settings: &AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, ConnectionDriver), RedisError> {
    let info = client.get_connection_info();
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the host name has no address").into());
    }
    let (stream, _) =
        select_ok(addresses.into_iter().map(|address| Box::pin(TcpStream::connect(address)))).await?;
    apply_settings(&stream, info.tcp_settings())?;
    let stream = LimitedStream { stream, limits: ReplyLimits::default() };
    let (connection, driver) =
        MultiplexedConnection::new_with_config(info.redis_settings(), stream, settings.clone()).await?;
    let driver = tokio::spawn(driver).abort_handle();
    Ok((connection, ConnectionDriver(Arc::new(AbortOnDrop(driver)))))
}

fn apply_settings(stream: &TcpStream, settings: &TcpSettings) -> io::Result<()> {
    stream.set_nodelay(settings.nodelay())?;
    let socket = SockRef::from(stream);
    if let Some(keepalive) = settings.keepalive() {
        socket.set_tcp_keepalive(keepalive)?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(settings.user_timeout())?;
    Ok(())
}

/// A socket whose incoming bytes are checked against limits.
struct LimitedStream {
    stream: TcpStream,
    limits: ReplyLimits,
}

impl AsyncRead for LimitedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, out))?;
        Poll::Ready(this.limits.check(&out.filled()[before..]))
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
