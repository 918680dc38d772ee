//! Payload as the standard input of a process.

use std::fs::File;
use std::io::{self, Seek, Write};

/// An unnamed file with the payload, positioned at its beginning.
///
/// With a pipe the process would read a truncated payload as complete if this program died while writing. This file is
/// complete before the process starts.
///
/// # Errors
/// Memory is full, or on other systems than Linux the temporary directory.
pub(super) fn payload_file(payload: &[u8]) -> io::Result<File> {
    let mut file = unnamed()?;
    file.write_all(payload)?;
    file.rewind()?;
    Ok(file)
}

/// In memory: it needs no writable or free disk.
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
            payload_file(payload).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, payload);
        }
    }
}
