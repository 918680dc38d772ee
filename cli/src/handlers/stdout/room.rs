//! The bytes that an output takes at once: [`Room`].

use std::fs::File;
use std::io;

use rustix::fs::FileType;

/// How many bytes an output takes without waiting for its reader.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room(usize);

impl Room {
    /// Of a regular file, whose bytes the page cache takes. `None` for all else: a pipe that has room when it is asked may have none
    /// when it is written to, if another process writes to it as well, and would block a thread of the runtime.
    pub(super) fn of(out: &File) -> io::Result<Option<Self>> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(out)?.st_mode);
        Ok((kind == FileType::RegularFile).then_some(Self(64 << 10)))
    }

    pub(super) fn bytes(self) -> usize {
        self.0
    }
}
