//! Checks the first line of a script for a missing interpreter.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::text::printable;

/// The bytes of a first line that Linux reads.
const FIRST_LINE: u64 = 256;

/// The most bytes of a word that are quoted.
const QUOTE_LIMIT: usize = 120;

/// Checks that the system can run a script. A file that is not a script, or cannot be read, passes.
///
/// # Errors
/// A description of the problem and its fix.
pub(super) fn check(file: &Path) -> Result<(), String> {
    let mut start = Vec::new();
    match File::open(file) {
        Ok(open) => drop(open.take(FIRST_LINE).read_to_end(&mut start)),
        Err(_) => return Ok(()),
    }
    let name = file.display();
    if start.is_empty() {
        return Err(format!("{name} is an empty file; write the handler into it"));
    }
    if let Some(rest) = start.strip_prefix(b"\xef\xbb\xbf")
        && rest.starts_with(b"#!")
    {
        return Err(format!(
            "{name} begins with a byte order mark before `#!`; save it as UTF-8 without one"
        ));
    }
    let Some(rest) = start.strip_prefix(b"#!") else { return Ok(()) };
    let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.last() == Some(&b'\r') {
        return Err(format!(
            "the first line of {name} ends with a carriage return (Windows line ends), which becomes part of the \
             interpreter's name; convert its line ends, for example with dos2unix"
        ));
    }
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    let Some(interpreter) = words.next() else {
        return Err(format!("the first line of {name} has no interpreter after `#!`"));
    };
    let quoted = |word: &[u8]| printable(word, QUOTE_LIMIT);
    let Ok(path) = std::str::from_utf8(interpreter).map(Path::new) else { return Ok(()) };
    if which::which(path).is_err() {
        return Err(format!(
            "the interpreter {} in the first line of {name} is not an executable file; install it or correct the line",
            quoted(interpreter)
        ));
    }
    // `#!/usr/bin/env python3`: env looks the name up in PATH, and fails with exit code 127.
    if path.file_name().is_some_and(|name| name == "env")
        && let Some(word) = words.next().filter(|word| !word.starts_with(b"-") && !word.contains(&b'='))
        && let Ok(program) = std::str::from_utf8(word)
        && which::which(program).is_err()
    {
        return Err(format!(
            "{} in the first line of {name} is not an executable file in PATH; install it or correct the line",
            quoted(word)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_that_cannot_run_are_described() {
        let folder = tempfile::tempdir().unwrap();
        let of = |text: &[u8]| {
            let file = folder.path().join("script");
            std::fs::write(&file, text).unwrap();
            check(&file)
        };
        for good in [
            &b"#!/bin/sh\nexit 0\n"[..],
            b"#! /bin/sh -e\n",
            b"#!/bin/sh",
            b"#!/usr/bin/env sh\n",
            b"#!/usr/bin/env -S sh -e\n",
            b"echo no first line\n",
            b"\x7fELF\x02",
        ] {
            assert_eq!(of(good), Ok(()), "{:?}", String::from_utf8_lossy(good));
        }
        for (bad, why) in [
            (&b"#!/bin/sh\r\nexit 0\r\n"[..], "carriage return"),
            (b"#!/no/such/interpreter\n", "/no/such/interpreter"),
            (b"#!/usr/bin/env no-such-language\n", "no-such-language"),
            (b"#!\n", "has no interpreter"),
            (b"\xef\xbb\xbf#!/bin/sh\n", "byte order mark"),
            (b"", "empty"),
        ] {
            let what = of(bad).unwrap_err();
            assert!(what.contains(why), "{what}");
        }
    }
}
