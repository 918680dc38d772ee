//! Writes payloads as lines to standard output: [`StdoutHandler`].

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use onceward::{Cancellation, Handled, Handler, HandlerError, Message};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The pause before a retry on a full pipe that is non-blocking.
const FULL_PIPE_PAUSE: Duration = Duration::from_millis(10);

/// Writes each payload and a line feed to standard output, and flushes before it completes the message.
///
/// Messages are written one after the other, so lines never mix; a payload with line feeds becomes several lines. A write
/// that has begun cannot be undone: it continues after a cancellation.
///
/// If writing fails (for example on a full disk) the handler is unavailable: no message uses an attempt, and after a
/// truncated line the next message begins on a new line. If the reader has closed the pipe, the [token](Self::closes) also
/// fires, since nothing can be written any more.
#[derive(Clone)]
pub struct StdoutHandler {
    out: Arc<Mutex<LineWriter<dyn Write + Send>>>,
    closed: CancellationToken,
}

impl StdoutHandler {
    /// A handler that writes to standard output, unbuffered.
    pub fn new() -> Self {
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(out) => Self::to(File::from(out)),
            Err(_) => Self::to(io::stdout()),
        }
    }

    /// A handler that writes to `out`.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self {
            out: Arc::new(Mutex::new(LineWriter { torn: false, to: out })),
            closed: CancellationToken::new(),
        }
    }

    /// Fires `token` when the reader has closed the pipe.
    #[must_use]
    pub fn closes(mut self, token: CancellationToken) -> Self {
        self.closed = token;
        self
    }
}

impl Default for StdoutHandler {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for StdoutHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StdoutHandler").finish_non_exhaustive()
    }
}

struct LineWriter<W: ?Sized> {
    /// The last line was truncated.
    torn: bool,
    to: W,
}

impl<W: Write + ?Sized> LineWriter<W> {
    fn line(&mut self, line: &[u8], cancellation: &Cancellation) -> io::Result<()> {
        if self.torn {
            self.write(b"\n", cancellation)?;
            self.torn = false;
        }
        self.write(line, cancellation)?;
        self.to.flush()
    }

    fn write(&mut self, bytes: &[u8], cancellation: &Cancellation) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = &rest[written..];
                    self.torn = !rest.is_empty();
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                // A line that has begun is completed.
                Err(cause)
                    if cause.kind() == io::ErrorKind::WouldBlock
                        && (self.torn || !cancellation.is_cancelled()) =>
                {
                    std::thread::sleep(FULL_PIPE_PAUSE);
                }
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }
}

impl Handler for StdoutHandler {
    type Output = ();

    async fn handle(&self, message: Message) -> Handled {
        let cancellation = message.cancellation();
        let mut line = Vec::with_capacity(message.payload().len() + 1);
        line.extend_from_slice(message.payload());
        line.push(b'\n');
        let out = Arc::clone(&self.out);
        // A slow reader blocks this thread, not one of the runtime.
        let written = tokio::task::spawn_blocking(move || {
            let mut out = out.lock();
            if cancellation.is_cancelled() {
                return Err(io::Error::other("the run was cancelled while others were writing"));
            }
            out.line(&line, &cancellation)
        });
        written.await?.map_err(|cause| {
            let hint = match cause.kind() {
                io::ErrorKind::BrokenPipe => {
                    if !self.closed.is_cancelled() {
                        tracing::info!("standard output closed by its reader; stopping the run");
                    }
                    self.closed.cancel();
                    "; its reader has closed it"
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "; free space at its destination"
                }
                _ => "",
            };
            HandlerError::unavailable(format!("cannot write the payload to standard output: {cause}{hint}"))
        })
    }
}
