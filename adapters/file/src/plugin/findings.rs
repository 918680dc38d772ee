//! Meanings of the codes of findings about files.

use onceward_plugin::FindingDoc;

/// The codes, in alphabetical order.
pub const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "dead-letter-file-not-writable",
        "The file of dead letters cannot be created or appended to.",
        "Create the directory and make it writable for the user, or name another file.",
    ),
    FindingDoc::new(
        "file-absent",
        "The file to be followed does not exist yet. A run waits for it.",
        "Check the name if it should exist.",
    ),
    FindingDoc::new(
        "file-key-absent",
        "The key is taken from a header or an id, which a raw line has not.",
        "Write `format = \"envelope\"`, or take the key from `json:/…` or `position`.",
    ),
    FindingDoc::new(
        "file-not-readable",
        "The file of the source cannot be read, is a directory, or is not text in UTF-8.",
        "Correct the path, or the rights of the file and its directories.",
    ),
];
