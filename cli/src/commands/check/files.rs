//! Looks at the files that a configuration names, without changing any.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use onceward::private_path;
use rustix::fs::{Access, access};

use super::finding::Finding;
use crate::config::{Config, FileSource};
use crate::handlers::text::io_words;

/// The file of a file source.
pub(super) fn source(config: &Config, source: &FileSource) -> Finding {
    const KEY: &str = "source.file.path";
    if source.is_standard_input() {
        return Finding::ok(config, Some(KEY), "reads standard input, without an offset");
    }
    let path = config.resolve(&source.path);
    let named = path.display();
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound && source.follow => {
            let message = format!("there is no file {named} yet; a run waits for it");
            return Finding::warning(config, KEY, message, "check its name if it should be there");
        }
        Err(error) => {
            let fix = match error.kind() {
                ErrorKind::NotFound => "correct the path, or write follow = true to wait for the file",
                _ => "make it and its directories readable for this user",
            };
            return Finding::error(
                config,
                KEY,
                format!("{named} cannot be read ({})", io_words(&error)),
                fix,
            );
        }
    };
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Finding::error(config, KEY, format!("{named} is a directory"), "name a file in it");
    }
    if kind.is_fifo() || kind.is_char_device() {
        // To open a pipe is to wait for its writer.
        return Finding::ok(
            config,
            Some(KEY),
            format!("{named} is a stream, read once and without an offset"),
        );
    }
    match File::open(&path) {
        Ok(_) => match onceward_file::check_content(&path) {
            Ok(()) => {
                Finding::ok(config, Some(KEY), format!("{named} can be read ({} bytes)", metadata.len()))
            }
            Err(error) => {
                Finding::error(config, KEY, error.to_string(), "name a file with lines of text in UTF-8")
            }
        },
        Err(error) => {
            let message = format!("{named} cannot be read ({})", io_words(&error));
            Finding::error(config, KEY, message, "make it readable for this user")
        }
    }
}

/// The file of dead letters.
pub(super) fn dead_letters(config: &Config, path: &Path) -> Finding {
    const KEY: &str = "dead_letter.to";
    let named = path.display();
    if let Err(error) = private_path(path) {
        // An error of the system leaves it to what follows.
        if let Some(what) = error.get_ref().map(ToString::to_string) {
            let (problem, fix) = what.split_once("; ").unwrap_or((&what, "name the file itself"));
            return Finding::error(config, KEY, format!("{named} cannot be used, since {problem}"), fix);
        }
    }
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            Finding::error(config, KEY, format!("{named} is not a file"), "name a file for dead letters")
        }
        Ok(_) => match OpenOptions::new().append(true).open(path) {
            Ok(_) => Finding::ok(config, Some(KEY), format!("{named} can be appended to")),
            Err(error) => {
                let message = format!("{named} cannot be written ({})", io_words(&error));
                Finding::error(config, KEY, message, "make it writable for this user")
            }
        },
        Err(_) => match writable_directory(path) {
            Ok(()) => {
                Finding::ok(config, Some(KEY), format!("{named} is created with the first dead letter"))
            }
            Err(what) => Finding::error(
                config,
                KEY,
                format!("{named} cannot be created, since {what}"),
                "create the directory and make it writable for this user",
            ),
        },
    }
}

/// Whether a file at `path` can be created; if not, why.
pub(super) fn writable_directory(path: &Path) -> Result<(), String> {
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
