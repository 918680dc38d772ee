//! Appends messages to files, one envelope a line, durable on return: [`FilePublisher`].

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind as Io, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use onceward::{Error, ErrorKind, Outgoing, Publisher};

use crate::attach::directory_of;
use crate::envelope;
use crate::error;

/// How long to wait for another process that appends to the same file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes each message as one line of [`Format::Envelope`](crate::Format::Envelope) to the file that
/// [`Outgoing::destination`] names, so that the file can be read again as a source: the dead letters of a file source.
///
/// `Ok` means that the line, and the file's name in its directory, are on disk. The lines of a batch for one file are
/// one append and one sync. Several publishers and processes may append to one file; an advisory lock keeps their
/// batches apart. If a crash left a line without its end, the next batch begins on a line of its own.
///
/// It never truncates, rotates or removes a file, and it creates no directories.
#[derive(Clone, Debug, Default)]
pub struct FilePublisher {
    /// The files whose directory entry is on disk.
    known: Arc<Mutex<HashSet<PathBuf>>>,
}

impl FilePublisher {
    /// A publisher; files are opened when they are written to.
    pub fn new() -> Self {
        Self::default()
    }

    fn append(&self, path: &Path, lines: &[u8]) -> Result<(), Error> {
        let failed = |error| error::io("append to", path, error);
        if path.as_os_str().is_empty() {
            return Err(error::config(
                "append to",
                Path::new("\"\""),
                "the destination is empty; name a file",
            ));
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => return Err(failed(Io::IsADirectory.into())),
            Ok(metadata) if !metadata.is_file() => {
                let what = "it is a pipe or a device, which keeps nothing; name a file";
                return Err(error::config("append to", path, what));
            }
            _ => {}
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        lock(&file, path)?;
        let whole;
        let lines = if ends_in_a_line(&file).map_err(failed)? {
            lines
        } else {
            whole = [b"\n", lines].concat();
            &whole
        };
        file.write_all(lines).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        if !self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(path) {
            let directory = directory_of(path);
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(|error| error::io("make durable the directory", directory, error))?;
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
        }
        Ok(())
    }
}

/// Waits for the advisory lock, which ends with `file`. A file system without locks is written to without one: an append
/// is one write there, too.
fn lock(file: &File, path: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) if error.kind() == Io::Unsupported => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error::io("lock", path, error)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(TryLockError::WouldBlock) => {
                let what =
                    format!("another process has held its lock for {LOCK_TIMEOUT:?}; see what holds it");
                return Err(Error::new(ErrorKind::Timeout, format!("append to {}", path.display()), what));
            }
        }
    }
}

fn ends_in_a_line(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.read_exact_at(&mut last, length - 1)?;
    Ok(last == *b"\n")
}

/// The lines for one file, and which items of the batch they are.
struct Part {
    path: PathBuf,
    lines: Vec<u8>,
    items: Vec<usize>,
}

fn parts(batch: &[Outgoing], results: &mut [Result<(), Error>]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (at, message) in batch.iter().enumerate() {
        let path = Path::new(&message.destination);
        let place = parts.iter().position(|part| part.path == path).unwrap_or_else(|| {
            parts.push(Part { path: path.to_owned(), lines: Vec::new(), items: Vec::new() });
            parts.len() - 1
        });
        let part = &mut parts[place];
        let before = part.lines.len();
        match envelope::write(message, &mut part.lines) {
            Ok(()) => part.items.push(at),
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
        let parts = parts(batch, &mut results);
        let publisher = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let write = |part: Part| (publisher.append(&part.path, &part.lines), part.items);
            parts.into_iter().map(write).collect::<Vec<_>>()
        })
        .await;
        match written {
            Ok(written) => {
                for (outcome, items) in written {
                    if let Err(error) = outcome {
                        items.iter().for_each(|at| results[*at] = Err(error.replicate()));
                    }
                }
            }
            Err(stopped) => {
                let what = "the task that appends was stopped; it is unknown how much was written";
                let error = Error::new(ErrorKind::Unknown, "append to files", what).with_source(stopped);
                results.iter_mut().for_each(|result| *result = Err(error.replicate()));
            }
        }
        results
    }
}
