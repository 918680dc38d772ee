//! `onceward init`: writes a commented starter configuration.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::config::STARTER;
use crate::exit::{Exit, Failure};
use crate::handlers::text::io_words;
use crate::output::Output;

/// Writes the starter to a new file, or prints it. Only the owner may read the file, since it may get passwords. An existing
/// file is never overwritten, and no link is followed.
pub(super) fn init(file: Option<&Path>, out: &mut Output) -> Result<Exit, Failure> {
    let Some(path) = file else {
        out.write(STARTER.as_bytes())?;
        return Ok(Exit::Done);
    };
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.and_then(|mut file| file.write_all(STARTER.as_bytes())).map_err(|error| {
        let fix = match error.kind() {
            ErrorKind::AlreadyExists => "choose another name, or move the file away",
            ErrorKind::NotFound => "create its directory first",
            _ => "choose a writable file",
        };
        let sentence =
            format!("{}: the starter cannot be written ({}); {fix}", path.display(), io_words(&error));
        Failure::new(Exit::Failed, sentence)
    })?;
    out.line(format_args!("{0}: written; edit it, then try: onceward check --offline {0}", path.display()))?;
    Ok(Exit::Done)
}
