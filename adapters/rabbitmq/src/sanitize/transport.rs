//! The byte transport of a connection: TCP or TLS, with inbound frames sanitised: [`SanitizedTransport`].

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::sanitize::defects::Defects;
use crate::sanitize::frames::Sanitizer;

/// A TCP socket, with or without TLS.
pub(crate) type Socket = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// A socket whose inbound bytes pass through a [`Sanitizer`].
#[derive(Debug)]
pub(crate) struct SanitizedTransport {
    socket: Socket,
    sanitizer: Sanitizer,
}

impl SanitizedTransport {
    /// For a connection that negotiates frames of at most `frame_max` bytes.
    pub(crate) fn new(socket: Socket, defects: Arc<Defects>, frame_max: u32) -> Self {
        Self { socket, sanitizer: Sanitizer::new(defects, frame_max as usize) }
    }
}

impl futures_io::AsyncRead for SanitizedTransport {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let taken = this.sanitizer.take(out);
            if taken > 0 || out.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            let mut space = ReadBuf::new(this.sanitizer.free_space());
            ready!(Pin::new(&mut this.socket).poll_read(context, &mut space))?;
            let read = space.filled().len();
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            this.sanitizer.filled(read)?;
        }
    }
}

impl futures_io::AsyncWrite for SanitizedTransport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(context, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

/// The tokio runtime in the form that the AMQP library expects, with our transport in place of a TCP stream.
#[derive(Clone, Debug)]
pub(crate) struct TransportRuntime(Tokio);

impl TransportRuntime {
    /// The runtime of the calling task.
    pub(crate) fn current() -> Runtime<Self> {
        Runtime::new(Self(Tokio::current()))
    }
}

impl RuntimeKit for TransportRuntime {}

impl Executor for TransportRuntime {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        call: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(call)
    }
}

impl Reactor for TransportRuntime {
    type TcpStream = SanitizedTransport;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// Unused: the AMQP library uses only the transport it is given.
    fn register<H: Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static> {
        Err::<SanitizedTransport, _>(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, period: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(period)
    }

    /// Unused: [`RabbitmqEndpoint`](crate::RabbitmqEndpoint) opens the connections.
    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<SanitizedTransport>> + Send + 'static {
        std::future::ready(Err(io::Error::from(io::ErrorKind::Unsupported)))
    }
}
