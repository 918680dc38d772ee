//! Appends messages to files, one envelope a line, durable on return: [`FilePublisher`].

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind as Io, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use onceward::adapter::open_private;
use onceward::{Error, ErrorKind, Outgoing, Publisher};

use crate::envelope;
use crate::error;
use crate::file_source::attach::directory_of;
use crate::file_tail::{FileTail, LetterIdentity};

/// How long a publish waits for the lock of another process that appends to the file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Appends each message as one line of [`Format::Envelope`](crate::Format::Envelope) to the file that
/// [`Outgoing::destination`] names. The file can be read as a source; it is meant for the dead letters of a file source.
///
/// `Ok` means that the line, and the directory entry of the file, are on disk. The lines of a batch for one file are one append
/// and one sync. Several publishers and processes may append to one file; an advisory lock keeps their batches apart.
///
/// A partial write of a failed batch (a full disk) is removed. A crash may leave an incomplete line: the beginning of an envelope
/// is removed before the next append, and any other line is terminated. A dead letter whose publish is repeated after a crash is
/// not written again if it is within the last 256 KiB of the file. On a file system without locks nothing is removed.
///
/// A new file has mode 0600: dead letters contain payloads, headers and errors. An existing file keeps its mode. A symbolic link
/// is followed as [`onceward::adapter::private_path`] says, and never to create a file.
///
/// It removes nothing else, rotates no file, and creates no directories.
#[derive(Clone, Debug, Default)]
pub struct FilePublisher {
    /// The files whose directory entry is on disk.
    synced: Arc<Mutex<HashSet<PathBuf>>>,
}

impl FilePublisher {
    /// A publisher. Each publish opens its files.
    pub fn new() -> Self {
        Self::default()
    }

    fn append(&self, part: &FileAppend) -> Result<(), Error> {
        let path = &*part.path;
        let failed = |error| error::io("append to", path, error);
        if path.as_os_str().is_empty() {
            return Err(error::config(
                "append to",
                Path::new("\"\""),
                "the destination is empty; name a file",
            ));
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(error::config("append to", path, "it is a directory; name a file in it"));
            }
            Ok(metadata) if !metadata.is_file() => {
                let what = "it is a pipe or a device, which keeps nothing; name a file";
                return Err(error::config("append to", path, what));
            }
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = open_private(path, options.read(true).append(true).create(true)).map_err(failed)?;
        let is_locked = lock(&file, path)?;
        let tail = FileTail::read(&file).map_err(failed)?;
        let tail = if is_locked { tail.remove_incomplete_line(&file, path).map_err(failed)? } else { tail };
        let lines = part.new_lines(&tail);
        if let Err(error) = write(&file, &lines) {
            if is_locked {
                remove_partial_write(&file, path, &tail, error.written);
            }
            return Err(failed(error.cause));
        }
        if !self.synced.lock().unwrap_or_else(PoisonError::into_inner).contains(path) {
            let directory = directory_of(path);
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(|error| error::io("make durable the directory", directory, error))?;
            self.synced.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
        }
        Ok(())
    }
}

/// A write that failed after so many bytes.
struct WriteError {
    cause: io::Error,
    written: u64,
}

/// Appends `lines` and makes them durable.
fn write(mut file: &File, lines: &[u8]) -> Result<(), WriteError> {
    let mut written = 0;
    while written < lines.len() {
        match file.write(&lines[written..]) {
            Ok(0) => return Err(WriteError { cause: Io::WriteZero.into(), written: written as u64 }),
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == Io::Interrupted => {}
            Err(cause) => return Err(WriteError { cause, written: written as u64 }),
        }
    }
    file.sync_data().map_err(|cause| WriteError { cause, written: written as u64 })
}

/// Removes the partial write of a failed batch, which will be published again, unless another program has appended to the file.
fn remove_partial_write(file: &File, path: &Path, tail: &FileTail, written: u64) {
    let removed = file.metadata().and_then(|metadata| {
        if metadata.len() != tail.length + written {
            return Err(io::Error::other("another program has appended to it without the file's lock"));
        }
        file.set_len(tail.length)
    });
    if let Err(error) = removed {
        tracing::warn!(
            path = %path.display(),
            %error,
            bytes = written,
            "partial batch of dead letters not removed; it will be written again"
        );
    }
}

/// Waits for the advisory lock, which closing `file` releases. False on a file system without locks, where an append is one write,
/// too.
fn lock(file: &File, path: &Path) -> Result<bool, Error> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) if error.kind() == Io::Unsupported => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error::io("lock", path, error)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(TryLockError::WouldBlock) => {
                let what =
                    format!("another process has held its lock for {LOCK_TIMEOUT:?}; find out which one");
                return Err(Error::new(ErrorKind::Timeout, format!("append to {}", path.display()), what));
            }
        }
    }
}

/// The lines of a batch for one file.
struct FileAppend {
    path: PathBuf,
    lines: Vec<u8>,
    /// The index of each item in the batch, and the end of its line in `lines`.
    items: Vec<(usize, usize)>,
    /// The identity of each item that is a dead letter.
    letters: Vec<Option<LetterIdentity>>,
}

impl FileAppend {
    /// The bytes to append after `tail`: the lines that it does not contain, and a newline before them if necessary.
    fn new_lines(&self, tail: &FileTail) -> Vec<u8> {
        let mut lines = Vec::with_capacity(self.lines.len() + 1);
        if tail.needs_newline {
            lines.push(b'\n');
        }
        let mut start = 0;
        for ((_, end), letter) in self.items.iter().zip(&self.letters) {
            if letter.as_ref().is_some_and(|letter| tail.holds(letter)) {
                tracing::debug!(path = %self.path.display(), "dead letter is already in the file");
            } else {
                lines.extend_from_slice(&self.lines[start..*end]);
            }
            start = *end;
        }
        lines
    }
}

fn split_by_file(batch: &[Outgoing], results: &mut [Result<(), Error>]) -> Vec<FileAppend> {
    let mut parts: Vec<FileAppend> = Vec::new();
    for (at, message) in batch.iter().enumerate() {
        let path = Path::new(&message.destination);
        let place = parts.iter().position(|part| part.path == path).unwrap_or_else(|| {
            parts.push(FileAppend {
                path: path.to_owned(),
                lines: Vec::new(),
                items: Vec::new(),
                letters: Vec::new(),
            });
            parts.len() - 1
        });
        let part = &mut parts[place];
        let before = part.lines.len();
        match envelope::write(message, &mut part.lines) {
            Ok(()) => {
                part.items.push((at, part.lines.len()));
                part.letters.push(LetterIdentity::of(message));
            }
            Err(cause) => {
                part.lines.truncate(before);
                let what = "the message cannot be written as JSON";
                results[at] =
                    Err(Error::new(ErrorKind::Internal, format!("append to {}", path.display()), what)
                        .with_source(cause));
            }
        }
    }
    parts
}

#[async_trait]
impl Publisher for FilePublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        let mut results: Vec<Result<(), Error>> = batch.iter().map(|_| Ok(())).collect();
        let parts = split_by_file(batch, &mut results);
        let publisher = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let write = |part: FileAppend| (publisher.append(&part), part.items);
            parts.into_iter().map(write).collect::<Vec<_>>()
        })
        .await;
        match written {
            Ok(written) => {
                for (outcome, items) in written {
                    if let Err(error) = outcome {
                        items.iter().for_each(|(at, _)| results[*at] = Err(error.clone()));
                    }
                }
            }
            Err(stopped) => {
                let what = "the task that appends was stopped; it is unknown how much was written";
                let error = Error::new(ErrorKind::Unknown, "append to files", what).with_source(stopped);
                results.iter_mut().for_each(|result| *result = Err(error.clone()));
            }
        }
        results
    }
}
