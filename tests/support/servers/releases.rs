//! Releases of Postgres beside the installed one: their programs, fetched once per machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use crate::jars::unpacked;

/// The major versions that are supported, oldest first.
pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];

/// The release of a major version.
fn release(major: u32) -> io::Result<&'static str> {
    Ok(match major {
        13 => "13.23.0",
        14 => "14.20.0",
        15 => "15.15.0",
        16 => "16.11.0",
        17 => "17.7.0",
        18 => "18.1.0",
        other => {
            return Err(io::Error::other(format!("no release of Postgres {other} is known to the tests")));
        }
    })
}

/// The folder with `initdb` and `postgres` of a major version.
pub(crate) fn programs(major: u32) -> io::Result<PathBuf> {
    let release = release(major)?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64v8",
        other => {
            return Err(io::Error::other(format!("there are no builds of Postgres {release} for {other}")));
        }
    };
    let artifact = format!("embedded-postgres-binaries-linux-{architecture}");
    let folder =
        unpacked(&format!("postgres-{release}"), ("io.zonky.test.postgres", &artifact, release), unpack)?;
    Ok(folder.join("bin"))
}

/// The jar holds one archive.
fn unpack(folder: &Path) -> io::Result<()> {
    let mut found = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let archive = found.find(|path| path.extension().is_some_and(|end| end == "txz"));
    let archive = archive.ok_or_else(|| io::Error::other("the jar of Postgres holds no archive"))?;
    let done = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(folder).output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        return Err(io::Error::other(format!("tar cannot unpack Postgres (is xz-utils installed?): {said}")));
    }
    fs::remove_file(archive)
}
