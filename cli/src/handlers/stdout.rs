//! Writes payloads as lines: [`StdoutHandler`].

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onceward::{Cancellation, Handled, Handler, HandlerError, Message};
use tokio_util::sync::CancellationToken;

/// How long to wait for room in a pipe that somebody has made non-blocking.
const FULL: Duration = Duration::from_millis(10);

/// Writes each payload and a line feed to standard output, and flushes before it is done.
///
/// One write for each message, one message at a time, so lines never mix; a payload that holds line feeds becomes
/// several lines. A write that has begun cannot be taken back: it goes on after a cancellation.
///
/// An output that cannot be written (a full disk) is unavailable: no message uses an attempt, and after a line that was cut
/// off the next one begins on a line of its own. Where the reader has gone (a closed pipe) the [token](Self::closes) fires as
/// well, since nothing can be written any more.
#[derive(Clone)]
pub struct StdoutHandler {
    out: Arc<Mutex<Out<dyn Write + Send>>>,
    closed: CancellationToken,
}

impl StdoutHandler {
    /// Writes to standard output, without a buffer in between.
    pub fn new() -> Self {
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(out) => Self::to(File::from(out)),
            Err(_) => Self::to(io::stdout()),
        }
    }

    /// Writes somewhere else.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self { out: Arc::new(Mutex::new(Out { torn: false, to: out })), closed: CancellationToken::new() }
    }

    /// Has `token` fire once the reader has gone.
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

struct Out<W: ?Sized> {
    /// A line was cut off.
    torn: bool,
    to: W,
}

impl<W: Write + ?Sized> Out<W> {
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
                // A line that has begun is finished.
                Err(cause)
                    if cause.kind() == io::ErrorKind::WouldBlock
                        && (self.torn || !cancellation.is_cancelled()) =>
                {
                    std::thread::sleep(FULL);
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
        // A slow reader of the pipe blocks this thread, not the runtime's.
        let written = tokio::task::spawn_blocking(move || {
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            if cancellation.is_cancelled() {
                return Err(io::Error::other("the run was cancelled while others were writing"));
            }
            out.line(&line, &cancellation)
        });
        written.await?.map_err(|cause| {
            let hint = match cause.kind() {
                io::ErrorKind::BrokenPipe => {
                    if !self.closed.is_cancelled() {
                        tracing::info!("the reader of standard output has gone away; the run ends");
                    }
                    self.closed.cancel();
                    "; its reader has gone away"
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "; make room where it is redirected to"
                }
                _ => "",
            };
            HandlerError::unavailable(format!("cannot write the payload to standard output: {cause}{hint}"))
        })
    }
}
