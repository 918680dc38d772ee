//! Meanings of the codes of findings about SQLite.

use onceward_plugin::FindingDoc;

/// The codes, in alphabetical order.
pub const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "sqlite-file-absent",
        "The file does not exist yet. The first run creates it.",
        "Check the path if it should exist.",
    ),
    FindingDoc::new(
        "sqlite-file-not-creatable",
        "The file does not exist and cannot be created.",
        "Create the directory and make it writable for the user.",
    ),
    FindingDoc::new(
        "sqlite-journal-not-wal",
        "The file is not in WAL mode, though that was requested: file systems on a network do not support it.",
        "Move the file to a local disk.",
    ),
    FindingDoc::new(
        "sqlite-not-synchronous",
        "`synchronous` is less than FULL. A power failure loses completions.",
        "This program sets it on each connection, so that this is a defect: please report it.",
    ),
];
