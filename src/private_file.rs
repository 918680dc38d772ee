//! Files with confidential content: readable by their owner only, and never opened through a link.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::geteuid;

/// Opens the file at `path` with `options`, which decide whether it may be created. A new file has mode 0600,
/// regardless of the umask; one that exists keeps its mode. A symbolic link as the last part of `path` is followed as
/// [`private_path`] allows, and never to a file that is not there yet.
///
/// # Errors
/// As [`File::open`] and [`private_path`].
pub fn open_private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let path = private_path(path)?;
    // It lets through no link that was put there since. The flag fits: it is a small number on every platform.
    let no_links = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    options.mode(0o600).custom_flags(no_links).open(path)
}

/// Where `path` leads to: itself, unless it is a symbolic link. A link is followed if it belongs to the user of this process,
/// or to root, and leads to a file that exists: anybody may place a link in a directory like `/tmp`, and what is written
/// through it would go into a file of their choice.
///
/// # Errors
/// `PermissionDenied` for a link that belongs to another user, `NotFound` for one that leads nowhere, and as
/// [`fs::canonicalize`].
pub fn private_path(path: &Path) -> io::Result<PathBuf> {
    let link = match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => found,
        _ => return Ok(path.to_owned()),
    };
    if link.uid() != geteuid().as_raw() && link.uid() != 0 {
        let what = "it is a symbolic link that belongs to another user; remove it, or name the file itself";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let what =
                "it is a symbolic link to a file that is not there, and none is created through a link; create that file, or \
                 name it itself";
            io::Error::new(io::ErrorKind::NotFound, what)
        }
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn append(path: &Path) -> io::Result<()> {
        let mut file = open_private(path, OpenOptions::new().append(true).create(true))?;
        file.write_all(b"x")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_new_file_is_its_owners_and_an_old_one_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        append(&new).unwrap();
        assert_eq!(mode(&new), 0o600);
        fs::write(&old, "").unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o664)).unwrap();
        append(&old).unwrap();
        assert_eq!((mode(&old), fs::read(&old).unwrap()), (0o664, b"x".to_vec()));
    }

    #[test]
    fn a_link_of_ones_own_leads_to_a_file_that_exists_and_creates_none() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        symlink(&file, &link).unwrap();
        assert_eq!(append(&link).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!file.exists());
        append(&file).unwrap();
        append(&link).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"xx");
        assert_eq!(private_path(&link).unwrap(), file.canonicalize().unwrap());
    }

    /// Only root can make a link that belongs to another user.
    #[test]
    fn a_link_of_somebody_elses_is_not_followed() {
        if !geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (victim, link) = (folder.path().join("victim"), folder.path().join("link"));
        fs::write(&victim, "").unwrap();
        symlink(&victim, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65_534), None).unwrap();
        assert_eq!(append(&link).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(fs::read(&victim).unwrap(), b"");
    }
}
