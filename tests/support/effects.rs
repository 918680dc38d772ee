//! Notes of what handlers did, written by the handlers themselves: an append-only file outside the system under test.
//!
//! One JSON line a [`Note`], each written in one call with `O_APPEND`, so that processes that die do not cut the lines
//! of others. There is no unique constraint anywhere: a doubled effect is seen as one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A run began.
    Start,
    /// The effect happened.
    Effect,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What it is about.
    pub kind: Kind,
    /// The `id` in the payload.
    pub id: String,
    /// The derived key that was passed to the handler; empty without one.
    pub key: String,
    /// The process that ran the handler.
    pub worker: u32,
    /// The fence that was passed to the handler.
    pub fence: u64,
    /// The attempt that was passed to the handler.
    pub attempt: u32,
    /// When the run began, in microseconds of the host's monotonic clock.
    pub start_us: u64,
    /// When the effect happened; the same as `start_us` in a [`Kind::Start`].
    pub end_us: u64,
}

/// Microseconds of the monotonic clock, which all processes of the host share.
pub fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

/// Appends a line.
///
/// # Errors
/// What the file system answers.
pub fn append(path: &Path, note: &Note) -> io::Result<()> {
    let mut line = serde_json::to_vec(note)?;
    line.push(b'\n');
    open(path)?.write_all(&line)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// All whole lines, in the order they were written; none if there is no file yet. Text after the last line end is being
/// written at this moment.
///
/// # Errors
/// What the file system answers, or a line that is no note: then the ledger itself is broken.
pub fn read(path: &Path) -> io::Result<Vec<Note>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            whole.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
