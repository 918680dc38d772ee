//! Writes payloads as lines: [`StdoutHandler`].

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use onceward::{Handled, Handler, HandlerError, Message};

/// Writes each payload and a line feed to standard output, and flushes before it is done.
///
/// One write for each message, one message at a time, so lines never mix; a payload that holds line feeds becomes
/// several lines. A reader that has gone away (a closed pipe) is an error worth retrying: what to do about it is not
/// this handler's to say. A write that has begun cannot be taken back: it goes on after a cancellation.
#[derive(Clone)]
pub struct StdoutHandler {
    out: Arc<Mutex<dyn Write + Send>>,
}

impl StdoutHandler {
    /// Writes to standard output.
    pub fn new() -> Self {
        Self::to(io::stdout())
    }

    /// Writes somewhere else.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self { out: Arc::new(Mutex::new(out)) }
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
            out.write_all(&line)?;
            out.flush()
        });
        written.await?.map_err(|cause| {
            let hint = match cause.kind() {
                io::ErrorKind::BrokenPipe => "; its reader has gone away",
                _ => "",
            };
            HandlerError::retry(format!("cannot write the payload to standard output: {cause}{hint}"))
        })
    }
}
