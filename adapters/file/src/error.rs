//! Classifies input and output errors: operation, path, cause and fix.

use std::io;
use std::path::Path;

use onceward::{Error, ErrorKind};

/// The error of `operation` ("read", "append to") on `path`.
pub(crate) fn io(operation: &str, path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    // The reason why [`onceward::adapter::private_path`] rejected a link; it is not an error of the operating system.
    let own = error.get_ref().map(ToString::to_string);
    let (kind, what) = match error.kind() {
        Io::NotFound => (ErrorKind::Config, "there is no such file or directory; check the path"),
        Io::PermissionDenied => {
            (ErrorKind::Denied, "permission denied; give the user that runs this program the right")
        }
        Io::ReadOnlyFilesystem => {
            (ErrorKind::Denied, "the file system is read-only; choose another path or mount it for writing")
        }
        Io::IsADirectory => (ErrorKind::Config, "it is a directory; name a file"),
        Io::NotADirectory => (ErrorKind::Config, "a part of the path is not a directory; check the path"),
        Io::InvalidFilename | Io::InvalidInput => {
            (ErrorKind::Config, "the path is not a valid file name; check it")
        }
        Io::StorageFull | Io::QuotaExceeded => {
            (ErrorKind::Unavailable, "the disk or the quota is full; free some space")
        }
        _ => (ErrorKind::Unavailable, "the operating system reports an error"),
    };
    let operation = format!("{operation} {}", path.display());
    match own {
        Some(own) if matches!(error.kind(), Io::NotFound | Io::PermissionDenied) => {
            Error::new(kind, operation, own)
        }
        _ => Error::new(kind, operation, what).with_source(error),
    }
}

/// A configuration error about `path`.
pub(crate) fn config(operation: &str, path: &Path, what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, format!("{operation} {}", path.display()), what.into())
}
