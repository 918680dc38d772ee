//! Writes payloads as lines to standard output: [`StdoutHandler`].

mod groups;
mod room;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use onceward::{Handled, Handler, HandlerError, Message};
use tokio_util::sync::CancellationToken;

use groups::LineGroups;
use room::Room;

/// Writes each payload and a line feed to standard output, and flushes before it completes the message. Messages that are ready
/// together are written and flushed together.
///
/// Lines never mix; a payload with line feeds becomes several lines. A write that has begun cannot be undone: it continues after
/// a cancellation.
///
/// If writing fails (for example on a full disk) the handler is unavailable: no message uses an attempt, and after a
/// truncated line the next message begins on a new line. If the reader has closed the pipe, the [token](Self::closes) also
/// fires, since nothing can be written any more.
#[derive(Clone)]
pub struct StdoutHandler {
    out: Arc<LineGroups<dyn Write + Send>>,
    closed: CancellationToken,
}

impl StdoutHandler {
    /// A handler that writes to standard output, unbuffered.
    pub fn new() -> Self {
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(out) => Self::to_file(File::from(out)),
            Err(_) => Self::to(io::stdout()),
        }
    }

    /// A handler that writes to an open file. A regular file is written to by the runs themselves; anything else, as by
    /// [`to`](Self::to), on a thread that may wait for the reader.
    pub fn to_file(out: File) -> Self {
        let room = Room::of(&out).ok().flatten();
        Self { out: Arc::new(LineGroups::to(out, room)), closed: CancellationToken::new() }
    }

    /// A handler that writes to `out`.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self { out: Arc::new(LineGroups::to(out, None)), closed: CancellationToken::new() }
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

impl Handler for StdoutHandler {
    type Output = ();

    async fn handle(&self, message: Message) -> Handled {
        self.out.write(message).await.map_err(|cause| {
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
