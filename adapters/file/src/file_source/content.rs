//! Refuses files that do not hold lines of text: [`check_content`].

use std::fs::File;
use std::io::Read;
use std::path::Path;

use onceward::Error;

use crate::error;
use crate::file_source::attach::{self, Kind};
use crate::file_source::incarnation::ReadAt;
use crate::file_source::signatures;

/// Checks that the file at `path` may hold lines of text, by its first bytes. A file that is not there, a pipe and a device
/// pass: they are checked when they are read. It blocks for a moment.
///
/// # Errors
/// [`ErrorKind::Config`](onceward::ErrorKind::Config) for a compressed file, text in UTF-16 or UTF-32 and other binary
/// formats, with a hint at what to do; the error of the operating system if the file cannot be read.
pub fn check_content(path: &Path) -> Result<(), Error> {
    match attach::kind(path)? {
        Kind::Missing | Kind::Stream => Ok(()),
        Kind::File => match attach::open(path)? {
            Some(file) => check(&file, path),
            None => Ok(()),
        },
    }
}

/// As [`check_content`], for an open file.
pub(crate) fn check(file: &File, path: &Path) -> Result<(), Error> {
    let mut head = Vec::with_capacity(signatures::HEAD_BYTES);
    ReadAt { file, offset: 0 }
        .take(signatures::HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(|error| error::io("read", path, error))?;
    signatures::refusal(&head).map_or(Ok(()), |what| Err(error::config("read", path, what)))
}
