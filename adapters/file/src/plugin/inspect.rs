//! Checks the files of `[source.file]` for `onceward check`, without changing any.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use onceward::adapter::private_path;
use onceward_plugin::files::{io_words, writable_directory};
use onceward_plugin::{Context, Finding};

/// The file of the source; `None` is standard input.
pub(super) fn source(context: &Context<'_>, path: Option<&Path>, follow: bool) -> Finding {
    let key = context.key("path");
    let Some(path) = path else {
        return Finding::ok(key, "reads standard input, without an offset");
    };
    let named = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound && follow => {
            let message = format!("there is no file {named} yet; a run waits for it");
            return Finding::warning("file-absent", key, message, "check its name if it should exist");
        }
        Err(error) => {
            let fix = match error.kind() {
                ErrorKind::NotFound => "correct the path, or write follow = true to wait for the file",
                _ => "make it and its directories readable for this user",
            };
            return Finding::error(
                "file-not-readable",
                key,
                format!("{named} cannot be read ({})", io_words(&error)),
                fix,
            );
        }
    };
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Finding::error(
            "file-not-readable",
            key,
            format!("{named} is a directory"),
            "name a file in it",
        );
    }
    if kind.is_fifo() || kind.is_char_device() {
        // Opening a pipe would wait for its writer.
        return Finding::ok(key, format!("{named} is a stream, read once and without an offset"));
    }
    match File::open(path) {
        Ok(_) => match crate::check_content(path) {
            Ok(()) => Finding::ok(key, format!("{named} can be read ({} bytes)", metadata.len())),
            Err(error) => Finding::error(
                "file-not-readable",
                key,
                error.to_string(),
                "name a file with lines of text in UTF-8",
            ),
        },
        Err(error) => {
            let message = format!("{named} cannot be read ({})", io_words(&error));
            Finding::error("file-not-readable", key, message, "make it readable for this user")
        }
    }
}

/// The file of dead letters.
pub(super) fn dead_letters(path: &Path) -> Finding {
    const KEY: &str = "dead_letter.to";
    let named = path.display();
    if let Err(error) = private_path(path) {
        // An error of the system is left to what follows.
        if let Some(what) = error.get_ref().map(ToString::to_string) {
            let (problem, fix) = what.split_once("; ").unwrap_or((&what, "name the file itself"));
            return Finding::error(
                "dead-letter-file-not-writable",
                KEY,
                format!("{named} cannot be used, since {problem}"),
                fix,
            );
        }
    }
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Finding::error(
            "dead-letter-file-not-writable",
            KEY,
            format!("{named} is not a file"),
            "name a file for dead letters",
        ),
        Ok(_) => match OpenOptions::new().append(true).open(path) {
            Ok(_) => Finding::ok(KEY, format!("{named} can be appended to")),
            Err(error) => {
                let message = format!("{named} cannot be written ({})", io_words(&error));
                Finding::error(
                    "dead-letter-file-not-writable",
                    KEY,
                    message,
                    "make it writable for this user",
                )
            }
        },
        Err(_) => match writable_directory(path) {
            Ok(()) => Finding::ok(KEY, format!("{named} is created with the first dead letter")),
            Err(what) => Finding::error(
                "dead-letter-file-not-writable",
                KEY,
                format!("{named} cannot be created, since {what}"),
                "create the directory and make it writable for this user",
            ),
        },
    }
}
