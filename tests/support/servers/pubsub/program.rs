//! The server's program, built by Go once per machine into the user's cache folder.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use crate::cache::{FOLDER, cache_of_user};

/// The release that scripts/setup installs where no newer one is found.
const GO: &str = "go-1.26.6";
/// The first release that builds it: 1.26.
const OLDEST: (u32, u32) = (1, 26);

/// The path of the program, which is built if this machine has none of these sources yet (a minute or two the first time).
pub(super) fn program() -> io::Result<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("pubsub/server");
    let cache = cache_of_user()?.join(FOLDER);
    let place = cache.join(format!("pubsub-{:016x}", fingerprint(&sources)?));
    if place.exists() {
        return Ok(place);
    }
    fs::create_dir_all(&cache)?;
    // Beside its place, then moved there: another test process may be doing the same.
    let making = tempfile::Builder::new().prefix("building-").tempdir_in(&cache)?;
    let made = making.path().join("server");
    let built = Command::new(go(&cache)?)
        .args(["build", "-o"])
        .arg(&made)
        .arg(".")
        .current_dir(&sources)
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .output()?;
    if !built.status.success() {
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        return Err(io::Error::other(format!("Go cannot build the Pub/Sub server: {said}")));
    }
    fs::rename(made, &place)?;
    Ok(place)
}

fn fingerprint(sources: &Path) -> io::Result<u64> {
    let mut files = fs::read_dir(sources)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.file_name().hash(&mut hasher);
        fs::read(&file)?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// The one that is on the path, unless it is too old; or the one that scripts/setup has installed.
fn go(cache: &Path) -> io::Result<PathBuf> {
    let installed = match Command::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output() {
        Ok(told) => String::from_utf8_lossy(&told.stdout).trim().to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => "none".to_owned(),
        Err(error) => return Err(error),
    };
    if release(&installed).is_some_and(|release| release >= OLDEST) {
        return Ok("go".into());
    }
    let own = cache.join(GO).join("go/bin/go");
    if own.exists() {
        return Ok(own);
    }
    Err(io::Error::other(format!(
        "it is built by Go 1.26 or newer (on the path: {installed}); run: scripts/setup"
    )))
}

/// `go1.26.8` is (1, 26).
fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix("go")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(release("go1.26.8"), Some((1, 26)));
        assert!(release("go1.9.7") < Some(OLDEST));
        assert_eq!(release("none"), None);
    }
}
