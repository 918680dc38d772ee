//! Finds the file to read and the offset to resume at: [`attach`].

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onceward::Error;
use onceward::adapter::Checkpoint;

use crate::error;
use crate::file_source::incarnation::{self, FileChange, FileEvidence, FileHead, FileIdentity};

/// An open file, and the offset to read from.
#[derive(Debug)]
pub(crate) struct AttachedFile {
    pub file: Arc<File>,
    pub identity: FileIdentity,
    /// The name of the incarnation in checkpoints and positions.
    pub incarnation: Arc<str>,
    pub offset: u64,
    pub head: FileHead,
    /// The evidence of its checkpoint, if it is the file of one.
    pub resumed: Option<FileEvidence>,
    pub cause: AttachCause,
}

/// Why the file is read from that offset.
#[derive(Debug)]
pub(crate) enum AttachCause {
    /// There is no checkpoint.
    First,
    /// It is the file of the checkpoint.
    Resumed,
    /// It is the file of the checkpoint under another name; it is finished before the file that took its name.
    Renamed(PathBuf),
    /// It is not the file of the checkpoint, or was rewritten.
    Changed(FileChange),
    /// It replaces a file that was read to its end.
    Rotated,
}

impl AttachedFile {
    /// Reads `file` from its beginning, as a new incarnation.
    pub(crate) fn new_incarnation(path: &Path, file: Arc<File>, cause: AttachCause) -> Result<Self, Error> {
        let metadata = file.metadata().map_err(|error| error::io("read", path, error))?;
        let identity = FileIdentity::of(&metadata);
        let incarnation = incarnation::new_name(identity)?.into();
        Ok(Self { file, identity, incarnation, offset: 0, head: FileHead::empty(), resumed: None, cause })
    }
}

/// The kind of file at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathKind {
    Missing,
    File,
    /// A pipe or a character device: read once, without offsets.
    Stream,
}

/// The kind of file at `path`, without opening it: opening a pipe waits for its writer.
pub(crate) fn kind(path: &Path) -> Result<PathKind, Error> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PathKind::Missing),
        Err(error) => return Err(error::io("read", path, error)),
    };
    let file_type = metadata.file_type();
    match () {
        () if file_type.is_file() => Ok(PathKind::File),
        () if file_type.is_fifo() || file_type.is_char_device() => Ok(PathKind::Stream),
        () if file_type.is_dir() => Err(error::config("read", path, "it is a directory; name a file in it")),
        () => Err(error::config("read", path, "it is neither a file nor a pipe; name one")),
    }
}

/// Opens `path`; `None` if it does not exist.
pub(crate) fn open(path: &Path) -> Result<Option<Arc<File>>, Error> {
    match kind(path)? {
        PathKind::Missing => return Ok(None),
        PathKind::Stream => {
            return Err(error::config("read", path, "it has become a pipe; restart to read it as one"));
        }
        PathKind::File => {}
    }
    match File::open(path) {
        Ok(file) => Ok(Some(Arc::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error::io("read", path, error)),
    }
}

/// Opens `path` and determines from `checkpoint` where to resume; `None` if there is no file.
///
/// With `follow`, a file that was renamed while no program read it (log rotation) is searched in the same directory, and
/// finished first.
pub(crate) fn attach(
    path: &Path,
    checkpoint: Option<&Checkpoint>,
    follow: bool,
) -> Result<Option<AttachedFile>, Error> {
    let file = open(path)?;
    let Some(checkpoint) = checkpoint else {
        return file.map(|file| AttachedFile::new_incarnation(path, file, AttachCause::First)).transpose();
    };
    let Some(file) = file else {
        return if follow { renamed(path, checkpoint) } else { Ok(None) };
    };
    let verdict = incarnation::compare(&file, checkpoint).map_err(|error| error::io("read", path, error))?;
    match verdict {
        Ok(evidence) => Ok(Some(resumed(file, checkpoint, evidence, AttachCause::Resumed))),
        Err(change @ FileChange::Replaced { .. }) if follow => match renamed(path, checkpoint)? {
            Some(before) => Ok(Some(before)),
            None => AttachedFile::new_incarnation(path, file, AttachCause::Changed(change)).map(Some),
        },
        Err(change) => AttachedFile::new_incarnation(path, file, AttachCause::Changed(change)).map(Some),
    }
}

fn resumed(
    file: Arc<File>,
    checkpoint: &Checkpoint,
    evidence: FileEvidence,
    cause: AttachCause,
) -> AttachedFile {
    AttachedFile {
        file,
        identity: evidence.identity,
        incarnation: checkpoint.incarnation.as_str().into(),
        offset: checkpoint.offset,
        head: evidence.head,
        resumed: Some(evidence),
        cause,
    }
}

/// The file of `checkpoint` under another name in the directory of `path`.
fn renamed(path: &Path, checkpoint: &Checkpoint) -> Result<Option<AttachedFile>, Error> {
    let Some(before) = FileEvidence::read(&checkpoint.evidence) else { return Ok(None) };
    let directory = directory_of(path);
    let failed = |error| error::io("search for the renamed file in", directory, error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.ino() != before.identity.inode || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Some(file) = open(&entry.path())? else { continue };
        if let Ok(evidence) = incarnation::compare(&file, checkpoint).map_err(failed)? {
            return Ok(Some(resumed(file, checkpoint, evidence, AttachCause::Renamed(entry.path()))));
        }
    }
    Ok(None)
}

/// The directory of `path`.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}
