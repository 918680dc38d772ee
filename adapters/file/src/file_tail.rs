//! What stands at the end of a file that is appended to: a line that was torn by a crash, and letters that are there already.

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

/// How far back letters are looked for.
const LOOK_BACK: u64 = 256 * 1024;
/// A letter that is published again has the same time, apart from the difference between the host's and the store's clock.
const CLOCK_DIFFERENCE_MS: u64 = 2_000;

/// What a letter is recognised by.
#[derive(Debug)]
pub(crate) struct LetterIdentity {
    own_id: String,
    first_at_ms: u64,
    payload: Bytes,
}

impl LetterIdentity {
    /// `None` for a message that is no letter with an id of our own.
    pub(crate) fn of(message: &Outgoing) -> Option<Self> {
        let (_, first_at) = message.headers.iter().find(|(name, _)| name == HEADER_FIRST_AT)?;
        let first_at_ms = number(first_at)?;
        let own_id = Some(message.own_id.clone()).filter(|id| !id.is_empty())?;
        Some(Self { own_id, first_at_ms, payload: message.payload.clone() })
    }

    /// True if `envelope` is this letter, written before: of the same failure, not of a later one of the same key.
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

    /// Removes a last line that a crash has left without its end, if it is the beginning of an envelope.
    pub(crate) fn without_torn_line(self, file: &File, path: &Path) -> io::Result<Self> {
        if !self.needs_newline {
            return Ok(self);
        }
        let start = start_of_last_line(file, self.length)?;
        if !is_torn_envelope(&read_at(file, start, self.length)?) {
            return Ok(self);
        }
        file.set_len(start)?;
        tracing::warn!(
            path = %path.display(),
            bytes = self.length - start,
            "a crash has left part of a dead letter at the end of the file; it is removed, and its message is delivered again"
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

/// The offset behind the last newline.
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

/// True for what [`envelope::write`] has begun and not ended.
fn is_torn_envelope(line: &[u8]) -> bool {
    let begins =
        |beginning: &&str| line.starts_with(beginning.as_bytes()) || beginning.as_bytes().starts_with(line);
    // A character of several bytes may be cut in two, which is an error of its own kind.
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
    fn only_the_beginning_of_an_envelope_is_torn() {
        let whole = r#"{"id":"ä","headers":{"a":"b"},"payload":{"c":"\"}"}}"#;
        for end in 1..whole.len() {
            assert!(is_torn_envelope(&whole.as_bytes()[..end]), "{end}");
        }
        for line in
            [whole, "", "half a line of somebody's", r#"{"note":"by hand"#, r#"{"id":x"#, r#"{"id":"1"}}"#]
        {
            assert!(!is_torn_envelope(line.as_bytes()), "{line}");
        }
    }
}
