//! The jars of servers, fetched by Maven once per machine into the user's cache folder.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use crate::cache::{FOLDER, cache_of_user};

/// The folder with the jars of `dependencies` (group, artifact, version) and of all they need; fetched if this machine has
/// none yet. `name` is the folder's, and says the version.
pub(crate) fn jars(name: &str, dependencies: &[(&str, &str, &str)]) -> io::Result<PathBuf> {
    fetched(&cache_of_user()?, name, "copy-dependencies", dependencies, |_| Ok(()))
}

/// The folder with the contents of one dependency's jar, prepared by `unpack`, which gets the folder as its argument. As
/// [`jars`] otherwise; other users can read it.
pub(crate) fn unpacked(
    name: &str,
    dependency: (&str, &str, &str),
    unpack: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<PathBuf> {
    // Other users cannot read root's home.
    let cache = if rustix::process::geteuid().is_root() { "/var/cache".into() } else { cache_of_user()? };
    fetched(&cache, name, "unpack-dependencies", &[dependency], unpack)
}

fn fetched(
    cache: &Path,
    name: &str,
    goal: &str,
    dependencies: &[(&str, &str, &str)],
    finish: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<PathBuf> {
    let cache = cache.join(FOLDER);
    let place = cache.join(name);
    if place.exists() {
        return Ok(place);
    }
    fs::create_dir_all(&cache)?;
    // Beside its place, then moved there as a whole: another test process may be doing the same.
    let making = tempfile::Builder::new().prefix("fetching-").tempdir_in(&cache)?;
    fs::write(making.path().join("pom.xml"), project(dependencies))?;
    let goal = format!("dependency:{goal}");
    let fetched = Command::new("mvn")
        .args(["-q", "-B", &goal, "-DincludeScope=runtime", "-DoutputDirectory=lib"])
        .current_dir(making.path())
        .output()
        .map_err(|error| missing("mvn", &error))?;
    if !fetched.status.success() {
        let said = String::from_utf8_lossy(&fetched.stdout).into_owned();
        return Err(io::Error::other(format!("Maven cannot fetch the jars of {name}: {said}")));
    }
    let made = making.path().join("lib");
    finish(&made)?;
    match fs::rename(made, &place) {
        Err(error) if !matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty) => {
            Err(error)
        }
        _ => Ok(place),
    }
}

fn project(dependencies: &[(&str, &str, &str)]) -> String {
    let dependencies = dependencies.iter().map(|(group, artifact, version)| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version></dependency>"
        )
    });
    format!(
        "<project><modelVersion>4.0.0</modelVersion><groupId>onceward</groupId><artifactId>servers-for-tests</artifactId>\
         <version>1</version><dependencies>{}</dependencies></project>",
        dependencies.collect::<String>()
    )
}

/// `program` cannot be run: how to get it.
pub(crate) fn missing(program: &str, error: &io::Error) -> io::Error {
    let install = "apt-get install -y maven openjdk-17-jre-headless";
    io::Error::other(format!("{program} cannot be run ({error}); run: {install}"))
}
