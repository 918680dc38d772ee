//! Files that a configuration names: passwords, secrets and certificates.

use std::io;
use std::path::Path;

use onceward::{Error, ErrorKind};
use rustix::fs::{Access, access};

use crate::Context;
use crate::value::Secret;

/// The password in the file at `path`; `table` is the table that names it as `password_file`.
///
/// # Errors
/// [`ErrorKind::Config`] if it cannot be read.
pub fn password_in(path: &Path, table: &str) -> Result<Secret, Error> {
    secret_in(path, &format!("{table}.password_file"))
}

/// The secret in the file at `path`, which the configuration's `key` names. Trailing line ends are removed.
///
/// # Errors
/// [`ErrorKind::Config`] if it cannot be read.
pub fn secret_in(path: &Path, key: &str) -> Result<Secret, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let what = format!(
            "{} cannot be read ({}); make it a text file that this user may read",
            path.display(),
            io_words(&error)
        );
        Error::new(ErrorKind::Config, format!("read {key}"), what)
    })?;
    Ok(Secret::from(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// The certificates in the file that the option `name` of this table names.
///
/// # Errors
/// [`ErrorKind::Config`] if it cannot be read.
pub fn certificates(context: &Context<'_>, name: &str, path: &Path) -> Result<Vec<u8>, Error> {
    let path = context.resolve(path);
    std::fs::read(&path).map_err(|error| {
        let what = format!(
            "{} cannot be read ({}); make it readable for this user",
            path.display(),
            io_words(&error)
        );
        Error::new(ErrorKind::Config, format!("read {}", context.key(name)), what)
    })
}

/// Whether a file at `path` can be created.
///
/// # Errors
/// Why it cannot.
pub fn writable_directory(path: &Path) -> Result<(), String> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(format!("there is no directory {}", directory.display()));
    }
    access(directory, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|_| format!("the directory {} cannot be written by this user", directory.display()))
}

/// An IO error in the system's words, such as "No such file or directory", without its number.
pub fn io_words(error: &io::Error) -> String {
    let words = error.to_string();
    match words.rfind(" (os error ") {
        Some(end) if error.raw_os_error().is_some() => words[..end].to_owned(),
        _ => words,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::io_words;

    #[test]
    fn an_io_error_is_shown_in_the_systems_words() {
        let missing = std::fs::File::open("/no/such/file").unwrap_err();
        assert_eq!(io_words(&missing), "No such file or directory");
        assert_eq!(io_words(&io::Error::other("disk (os error 5)")), "disk (os error 5)");
    }
}
