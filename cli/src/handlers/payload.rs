//! A payload as a process's standard input.

use std::fs::File;
use std::io::{self, Seek, Write};

/// A file without a name that holds the payload, to be read from its beginning.
///
/// Not a pipe: if this program dies while it writes to one, the process reads an end of file after a part of the payload,
/// or at once, and takes that for the whole. This file is whole before the process starts.
///
/// # Errors
/// What the operating system answers: memory, or elsewhere than on Linux the temporary directory, is full.
pub(super) fn whole(payload: &[u8]) -> io::Result<File> {
    let mut file = unnamed()?;
    file.write_all(payload)?;
    file.rewind()?;
    Ok(file)
}

/// In memory, so that neither a read-only root nor a full disk stands in the way.
#[cfg(target_os = "linux")]
fn unnamed() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    Ok(memfd_create("onceward-payload", MemfdFlags::CLOEXEC)?.into())
}

#[cfg(not(target_os = "linux"))]
fn unnamed() -> io::Result<File> {
    let name = format!("onceward-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let path = std::env::temp_dir().join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn it_is_read_from_its_beginning_to_its_end() {
        for payload in [&b""[..], b"one\0line\n", &[7; 1 << 20]] {
            let mut read = Vec::new();
            whole(payload).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, payload);
        }
    }
}
