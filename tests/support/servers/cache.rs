//! The folder that keeps, once per machine, what the tests have fetched or built.

use std::path::{Path, PathBuf};
use std::{env, io};

/// In a cache folder: the part that is ours.
pub(crate) const FOLDER: &str = "onceward-tests";

/// The user's cache folder.
pub(crate) fn cache_of_user() -> io::Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")));
    cache.ok_or_else(|| io::Error::other("neither XDG_CACHE_HOME nor HOME is set"))
}
