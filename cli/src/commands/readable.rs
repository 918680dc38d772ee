//! Finds files with secrets that every user of the machine may read.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::config::{Advice, Config};

/// Readable by everybody. Readable by the group is accepted: Kubernetes mounts secrets like that.
const BY_OTHERS: u32 = 0o004;

/// A warning for each file that everybody may read. A missing file is reported when it is opened.
pub(super) fn secrets(config: &Config) -> Vec<Advice> {
    let readable = config.secret_files().into_iter().filter(|(_, file)| is_readable_by_others(file));
    let remark = |(key, file): (String, std::path::PathBuf)| {
        let problem = format!("{} can be read by every user of this machine", file.display());
        config.warn("secret-file-readable", &key, problem, "remove the permission: chmod o-rwx")
    };
    readable.map(remark).collect()
}

fn is_readable_by_others(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & BY_OTHERS != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_everybody_may_read_is_found_and_one_of_a_group_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        assert!(!is_readable_by_others(&file));
        fs::write(&file, "hunter2").unwrap();
        for (mode, is_readable) in [(0o644, true), (0o604, true), (0o640, false), (0o600, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_readable_by_others(&file), is_readable, "{mode:o}");
        }
        assert!(!is_readable_by_others(folder.path()), "a folder is no file with a secret");
    }
}
