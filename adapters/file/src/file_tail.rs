//! Reads the end of a file before an append: a line that a crash left incomplete, and dead letters already written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use memchr::{memmem, memrchr};
use onceward::Outgoing;
use onceward::dead_letter::{HEADER_FIRST_AT, HEADER_ID};
use serde::de::IgnoredAny;

use crate::envelope::{self, BEGINNINGS, Envelope};

/// Bytes at the end of the file in which dead letters are searched.
const LOOK_BACK: u64 = 256 * 1024;
/// Tolerated difference between the times of a dead letter that is published twice: that of the host's and the store's clocks.
const CLOCK_DIFFERENCE_MS: u64 = 2_000;

/// The identity of a dead letter, by which a repeated publish is recognised.
#[derive(Debug)]
pub(crate) struct LetterIdentity {
    own_id: String,
    first_at_ms: u64,
    payload: Bytes,
}

impl LetterIdentity {
    /// The identity of `message`; `None` if it is not a dead letter with onceward's id.
    pub(crate) fn of(message: &Outgoing) -> Option<Self> {
        let (_, first_at) = message.headers.iter().find(|(name, _)| name == HEADER_FIRST_AT)?;
        let first_at_ms = number(first_at)?;
        let own_id = Some(message.own_id.clone()).filter(|id| !id.is_empty())?;
        Some(Self { own_id, first_at_ms, payload: message.payload.clone() })
    }

    /// True if `envelope` is this letter: of the same failure, not of a later one of the same key.
    fn is_in(&self, envelope: &Envelope) -> bool {
        envelope.header(HEADER_ID).is_some_and(|id| *id == self.own_id.as_bytes())
            && envelope.payload == self.payload
            && envelope
                .header(HEADER_FIRST_AT)
                .and_then(|value| number(value))
                .is_some_and(|at| at.abs_diff(self.first_at_ms) <= CLOCK_DIFFERENCE_MS)
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The end of a file.
#[derive(Debug)]
pub(crate) struct FileTail {
    /// The length of the file in bytes.
    pub length: u64,
    /// The last line has no newline.
    pub needs_newline: bool,
    /// The last bytes of the file.
    bytes: Vec<u8>,
}

impl FileTail {
    /// Reads the end of `file`.
    pub(crate) fn read(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let bytes = read_at(file, length.saturating_sub(LOOK_BACK), length)?;
        Ok(Self { length, needs_newline: bytes.last().is_some_and(|last| *last != b'\n'), bytes })
    }

    /// Removes an incomplete last line, if it is the beginning of an envelope.
    pub(crate) fn remove_incomplete_line(self, file: &File, path: &Path) -> io::Result<Self> {
        if !self.needs_newline {
            return Ok(self);
        }
        let start = start_of_last_line(file, self.length)?;
        if !is_incomplete_envelope(&read_at(file, start, self.length)?) {
            return Ok(self);
        }
        file.set_len(start)?;
        tracing::warn!(
            path = %path.display(),
            bytes = self.length - start,
            "incomplete dead letter at the end of the file removed; its message is redelivered"
        );
        Self::read(file)
    }

    /// True if `letter` is among the last lines.
    pub(crate) fn holds(&self, letter: &LetterIdentity) -> bool {
        let is_whole = |line: &&[u8]| memmem::find(line, letter.own_id.as_bytes()).is_some();
        self.bytes
            .split(|byte| *byte == b'\n')
            .filter(is_whole)
            .filter_map(|line| envelope::parse(line).ok())
            .any(|envelope| letter.is_in(&envelope))
    }
}

/// The offset after the last newline.
fn start_of_last_line(file: &File, length: u64) -> io::Result<u64> {
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(LOOK_BACK);
        if let Some(at) = memrchr(b'\n', &read_at(file, start, end)?) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// True for an incomplete envelope of [`envelope::write`].
fn is_incomplete_envelope(line: &[u8]) -> bool {
    let begins =
        |beginning: &&str| line.starts_with(beginning.as_bytes()) || beginning.as_bytes().starts_with(line);
    // A character of several bytes may be truncated, which is another kind of error.
    let text = match std::str::from_utf8(line) {
        Err(error) if error.error_len().is_none() => &line[..error.valid_up_to()],
        _ => line,
    };
    !line.is_empty()
        && BEGINNINGS.iter().any(begins)
        && serde_json::from_slice::<IgnoredAny>(text).is_err_and(|error| error.is_eof())
}

fn read_at(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(to - from).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_of_an_envelope_is_incomplete() {
        let whole = r#"{"id":"ä","headers":{"a":"b"},"payload":{"c":"\"}"}}"#;
        for end in 1..whole.len() {
            assert!(is_incomplete_envelope(&whole.as_bytes()[..end]), "{end}");
        }
        for line in [
            whole,
            "",
            "half a line of another writer",
            r#"{"note":"by hand"#,
            r#"{"id":x"#,
            r#"{"id":"1"}}"#,
        ] {
            assert!(!is_incomplete_envelope(line.as_bytes()), "{line}");
        }
    }
}
