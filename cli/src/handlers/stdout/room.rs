//! The bytes that an output takes at once: [`Room`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;

/// Linux reports a pipe as writable if a page of it is free; so much is written to it at once, or not at all (pipe(7)).
const PIPE_BYTES: usize = 4096;
/// The page cache takes a file's bytes.
const FILE_BYTES: usize = 64 << 10;

/// How many bytes an output takes without waiting for its reader.
pub(super) struct Room {
    out: OwnedFd,
    is_pipe: bool,
}

impl Room {
    /// Of a pipe or a regular file; `None` for what may take fewer bytes than it says, such as a terminal.
    pub(super) fn of(out: &File) -> io::Result<Option<Self>> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(out)?.st_mode);
        let is_pipe = kind == FileType::Fifo;
        if !is_pipe && kind != FileType::RegularFile {
            return Ok(None);
        }
        Ok(Some(Self { out: out.as_fd().try_clone_to_owned()?, is_pipe }))
    }

    /// How many it takes now. 0: it is full, or its reader has gone.
    pub(super) fn bytes(&self) -> usize {
        if !self.is_pipe {
            return FILE_BYTES;
        }
        let mut asked = [PollFd::new(&self.out, PollFlags::OUT)];
        let ready = poll(&mut asked, Some(&Timespec::default()));
        if ready.is_ok() && asked[0].revents() == PollFlags::OUT { PIPE_BYTES } else { 0 }
    }
}
