//! Standard output, which may be a pipe that closes at any time: [`Output`].

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::handlers::text::printable;

/// Milliseconds, as numbers of JSON have them.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The destination of the results of a command. Diagnostics go to standard error, see [`complain`].
pub struct Output {
    out: Box<dyn Write + Send>,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

/// The failure of a write.
#[derive(Debug)]
pub enum OutputError {
    /// The reader has closed the pipe.
    Closed,
    /// Writing failed.
    Failed(io::Error),
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("standard output was closed by its reader"),
            Self::Failed(error) => {
                write!(f, "writing to standard output failed ({error}); check for a full disk")
            }
        }
    }
}

impl std::error::Error for OutputError {}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(error),
        }
    }
}

impl Output {
    /// The process's standard output.
    pub fn stdout() -> Self {
        Self::to(io::stdout())
    }

    /// Any writer, for tests.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self { out: Box::new(out) }
    }

    /// Writes one line.
    ///
    /// # Errors
    /// The reader has closed the pipe, or writing failed.
    pub fn line(&mut self, line: impl fmt::Display) -> Result<(), OutputError> {
        self.write(format!("{line}\n").as_bytes())
    }

    /// Writes one value as one line of JSON.
    ///
    /// # Errors
    /// The reader has closed the pipe, or writing failed.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), OutputError> {
        let mut line = serde_json::to_vec(value).map_err(io::Error::from)?;
        line.push(b'\n');
        self.write(&line)
    }

    /// Writes bytes unchanged, and flushes.
    ///
    /// # Errors
    /// The reader has closed the pipe, or writing failed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        self.out.write_all(bytes)?;
        self.out.flush()?;
        Ok(())
    }
}

/// The longest line written by [`complain`], in bytes.
const COMPLAINT_LIMIT: usize = 16 * 1024;

/// Writes one line to standard error, with control characters escaped. A failure is ignored: there is nowhere to report it.
pub fn complain(line: impl fmt::Display) {
    let line = printable(line.to_string().as_bytes(), COMPLAINT_LIMIT);
    let _ = writeln!(io::stderr(), "{line}");
}
