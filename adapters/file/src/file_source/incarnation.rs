//! Recognises a file that was read before: [`FileEvidence`], [`compare`].

use std::borrow::Borrow;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use onceward::adapter::Checkpoint;
use onceward::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::line_mark::{Digest, KEPT_BYTES, LineMark};

/// Bytes at the beginning of a file that identify it.
const HEAD_BYTES: u64 = 4096;

/// The device and inode of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    pub device: u64,
    pub inode: u64,
}

impl FileIdentity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A hash of the beginning of a file: its first `bytes` bytes, at most [`HEAD_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHead {
    pub bytes: u64,
    pub hash: blake3::Hash,
}

impl FileHead {
    /// The head of a file before any delivery.
    pub(crate) fn empty() -> Self {
        Self { bytes: 0, hash: blake3::hash(b"") }
    }

    /// The head to save once everything before `end` is delivered; `None` if `self` is long enough, or if the file no longer
    /// begins with it.
    pub(crate) fn grown(&self, file: &File, end: u64) -> io::Result<Option<Self>> {
        let bytes = end.min(HEAD_BYTES);
        if bytes <= self.bytes {
            return Ok(None);
        }
        let read = read_at(file, 0, bytes)?;
        let known = read.get(..self.bytes as usize);
        if read.len() as u64 != bytes || known.is_none_or(|known| blake3::hash(known) != self.hash) {
            return Ok(None);
        }
        Ok(Some(Self { bytes, hash: blake3::hash(&read) }))
    }

    /// True if `file` still begins with this head.
    pub(crate) fn matches(&self, file: &File) -> io::Result<bool> {
        let read = read_at(file, 0, self.bytes)?;
        Ok(read.len() as u64 == self.bytes && blake3::hash(&read) == self.hash)
    }
}

/// The evidence in a checkpoint by which a file is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileEvidence {
    pub identity: FileIdentity,
    /// The offset up to which the file was delivered: its minimum length.
    pub length: u64,
    /// Its head, as far as it was delivered.
    pub head: FileHead,
    /// The last line before the offset.
    pub passed: Option<LineMark>,
}

/// The serialized form of [`FileEvidence`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEvidence {
    device: u64,
    inode: u64,
    length: u64,
    head_bytes: u64,
    head: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    passed: Option<(u64, u64, String)>,
}

impl FileEvidence {
    /// The text for [`Checkpoint::evidence`].
    pub(crate) fn write(&self) -> Result<String, Error> {
        let written = StoredEvidence {
            device: self.identity.device,
            inode: self.identity.inode,
            length: self.length,
            head_bytes: self.head.bytes,
            head: self.head.hash.to_hex().to_string(),
            passed: self.passed.map(|mark| (mark.start, mark.end, hex(&mark.digest))),
        };
        serde_json::to_string(&written).map_err(|error| {
            Error::new(
                ErrorKind::Internal,
                "keep the offset of a file",
                "its evidence cannot be written as JSON",
            )
            .with_source(error)
        })
    }

    /// Parses the text of [`write`](Self::write); `None` if another version of the program wrote it.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let written: StoredEvidence = serde_json::from_str(text).ok()?;
        let passed = match written.passed {
            None => None,
            Some((start, end, digest)) if start < end => Some(LineMark {
                start,
                end,
                digest: Digest(*blake3::Hash::from_hex(digest).ok()?.as_bytes()),
            }),
            Some(_) => return None,
        };
        Some(Self {
            identity: FileIdentity { device: written.device, inode: written.inode },
            length: written.length,
            head: FileHead {
                bytes: written.head_bytes.min(HEAD_BYTES),
                hash: blake3::Hash::from_hex(written.head).ok()?,
            },
            passed,
        })
    }
}

fn hex(digest: &Digest) -> String {
    blake3::Hash::from_bytes(digest.0).to_hex().to_string()
}

/// How a file differs from the one that was read before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileChange {
    Replaced { now: FileIdentity, before: FileIdentity },
    Truncated { now: u64, before: u64 },
    HeadDiffers { bytes: u64 },
    LineDiffers { offset: u64 },
    UnknownEvidence,
}

impl fmt::Display for FileChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replaced { now, before } => write!(
                f,
                "another file has taken its name (inode {} on device {}, before {} on {})",
                now.inode, now.device, before.inode, before.device
            ),
            Self::Truncated { now, before } => {
                write!(f, "it was truncated (at least {before} bytes before, {now} now)")
            }
            Self::HeadDiffers { bytes } => write!(f, "its first {bytes} bytes are not those that were read"),
            Self::LineDiffers { offset } => {
                write!(f, "the line at offset {offset} is not the one that was read")
            }
            Self::UnknownEvidence => f.write_str("its kept offset was written by another version"),
        }
    }
}

/// Compares `file` with the evidence of `checkpoint`: returns the evidence, or the difference.
///
/// A different device number alone is accepted if everything else agrees and a line was passed: it may change with a reboot, and a
/// full re-read would give every line a new position.
pub(crate) fn compare(file: &File, checkpoint: &Checkpoint) -> io::Result<Result<FileEvidence, FileChange>> {
    let Some(evidence) = FileEvidence::read(&checkpoint.evidence) else {
        return Ok(Err(FileChange::UnknownEvidence));
    };
    let metadata = file.metadata()?;
    let (now, before) = (FileIdentity::of(&metadata), evidence.identity);
    let moved_device = now.inode == before.inode && evidence.passed.is_some();
    if now != before && !moved_device {
        return Ok(Err(FileChange::Replaced { now, before }));
    }
    let least = evidence.length.max(checkpoint.offset);
    if metadata.len() < least {
        return Ok(Err(FileChange::Truncated { now: metadata.len(), before: least }));
    }
    if !evidence.head.matches(file)? {
        return Ok(Err(FileChange::HeadDiffers { bytes: evidence.head.bytes }));
    }
    if let Some(mark) = evidence.passed {
        let bytes = mark.end - mark.start;
        let read = read_at(file, mark.start, bytes.min(KEPT_BYTES as u64))?;
        if Digest::of(bytes, &read) != mark.digest {
            return Ok(Err(FileChange::LineDiffers { offset: mark.start }));
        }
    }
    Ok(Ok(FileEvidence { identity: now, ..evidence }))
}

/// A name for a new incarnation of `identity`. It is saved in the checkpoint, so that it survives restarts; the random part
/// distinguishes files of one name that get the same inode one after the other.
pub(crate) fn new_name(identity: FileIdentity) -> Result<String, Error> {
    Ok(format!("{:x}-{:x}-{:016x}", identity.device, identity.inode, nonce()?))
}

/// A name for the incarnation of a stream; it differs between runs.
pub(crate) fn stream_name() -> Result<String, Error> {
    Ok(format!("stream-{:016x}", nonce()?))
}

fn nonce() -> Result<u64, Error> {
    getrandom::u64().map_err(|error| {
        Error::new(ErrorKind::Unavailable, "name a source", "the operating system provides no random numbers")
            .with_source(error)
    })
}

/// Up to `bytes` bytes of `file` from `offset` on; fewer at its end. The cursor of the file does not move.
fn read_at(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut read = Vec::with_capacity(bytes as usize);
    ReadAt { file, offset }.take(bytes).read_to_end(&mut read)?;
    Ok(read)
}

/// Reads a file from an offset on without moving its cursor, so that reads can be concurrent.
pub(crate) struct ReadAt<F> {
    pub file: F,
    pub offset: u64,
}

impl<F: Borrow<File>> Read for ReadAt<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.borrow().read_at(into, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// The identity of the file at `path`; `None` if no file exists there.
pub(crate) fn identity_at(path: &Path) -> io::Result<Option<FileIdentity>> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(FileIdentity::of(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    /// A file with `text`, and the checkpoint of a run that stopped before the line `offset` begins with.
    fn read_before(text: &str, offset: usize) -> (tempfile::NamedTempFile, Checkpoint) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let head = FileHead::empty().grown(file.as_file(), text.len() as u64).unwrap().unwrap();
        let start = text[..offset].trim_end().rfind('\n').map_or(0, |at| at + 1);
        let line = &text.as_bytes()[start..offset];
        let evidence = FileEvidence {
            identity: FileIdentity::of(&file.as_file().metadata().unwrap()),
            length: text.len() as u64,
            head,
            passed: Some(LineMark {
                start: start as u64,
                end: offset as u64,
                digest: Digest::of(line.len() as u64, line),
            }),
        };
        let evidence = evidence.write().unwrap();
        (file, Checkpoint { incarnation: "one".into(), offset: offset as u64, evidence })
    }

    fn verdict(file: &tempfile::NamedTempFile, checkpoint: &Checkpoint) -> Result<FileEvidence, FileChange> {
        compare(&File::open(file.path()).unwrap(), checkpoint).unwrap()
    }

    #[test]
    fn a_file_that_only_grew_is_the_same() {
        let (mut file, checkpoint) = read_before("one\ntwo\nthree\n", 8);
        assert!(verdict(&file, &checkpoint).is_ok());
        file.write_all(b"four\n").unwrap();
        assert!(verdict(&file, &checkpoint).is_ok());
    }

    #[test]
    fn a_shorter_file_was_truncated() {
        let (file, checkpoint) = read_before("one\ntwo\nthree\n", 8);
        file.as_file().set_len(10).unwrap();
        assert_eq!(verdict(&file, &checkpoint), Err(FileChange::Truncated { now: 10, before: 14 }));
    }

    #[test]
    fn another_beginning_is_another_file() {
        let (file, checkpoint) = read_before("one\ntwo\nthree\n", 8);
        fs::write(file.path(), "ONE\ntwo\nthree\nfour\n").unwrap();
        assert_eq!(verdict(&file, &checkpoint), Err(FileChange::HeadDiffers { bytes: 14 }));
    }

    #[test]
    fn the_same_beginning_with_another_last_line_is_another_file() {
        let header = "x".repeat(5000) + "\n";
        let (file, checkpoint) = read_before(&format!("{header}two\nthree\n"), 5005);
        fs::write(file.path(), format!("{header}TWO\nthree\n")).unwrap();
        assert_eq!(verdict(&file, &checkpoint), Err(FileChange::LineDiffers { offset: 5001 }));
    }

    #[test]
    fn another_inode_is_another_file_and_another_device_number_is_not() {
        let (file, checkpoint) = read_before("one\ntwo\n", 4);
        let mut evidence = FileEvidence::read(&checkpoint.evidence).unwrap();
        evidence.identity.device += 1;
        let moved = Checkpoint { evidence: evidence.write().unwrap(), ..checkpoint.clone() };
        assert!(verdict(&file, &moved).is_ok());
        evidence.identity.inode += 1;
        let replaced = Checkpoint { evidence: evidence.write().unwrap(), ..checkpoint };
        assert!(matches!(verdict(&file, &replaced), Err(FileChange::Replaced { .. })));
    }

    #[test]
    fn evidence_of_another_version_is_not_trusted() {
        let (file, mut checkpoint) = read_before("one\ntwo\n", 4);
        checkpoint.evidence = "v2".into();
        assert_eq!(verdict(&file, &checkpoint), Err(FileChange::UnknownEvidence));
    }

    #[test]
    fn a_head_grows_only_over_what_it_was() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"one\ntwo\n").unwrap();
        let head = FileHead::empty().grown(file.as_file(), 4).unwrap().unwrap();
        assert_eq!(head.bytes, 4);
        assert_eq!(head.grown(file.as_file(), 4).unwrap(), None);
        assert_eq!(head.grown(file.as_file(), 8).unwrap().unwrap().bytes, 8);
        fs::write(file.path(), "ONE\ntwo\n").unwrap();
        assert_eq!(head.grown(file.as_file(), 8).unwrap(), None);
    }
}
