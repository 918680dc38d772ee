//! Files and standard input as a source for [`onceward`], and files as the destination of dead letters.
//!
//! [`FileConsumer`] delivers each line of a file as a message and saves, in a
//! [`CheckpointStore`](onceward::adapter::CheckpointStore), the offset before which every line is settled. [`FilePublisher`]
//! appends messages to files durably.
//!
//! ```text
//! file ─▶ reader thread ─▶ batches ─▶ receive ─▶ pipeline
//!                                                   │ settle
//!           checkpoint store ◀─ offset ◀─ watermark ◀┘
//! ```
//!
//! # Lines
//! A line ends with `\n` or `\r\n`; its content may be any bytes. **An empty line is not a message** and is skipped.
//! A line that exceeds the size limit, or is not a valid envelope in envelope format, is delivered with its
//! [`Defect`](onceward::adapter::Defect). [`Position`](onceward::Position) is the byte offset of the line in this incarnation of the file.
//!
//! A UTF-8 byte order mark at the beginning is dropped. Compressed files, text in UTF-16 or UTF-32 and other binary formats are
//! recognised by their first bytes and refused, with a fix; none of their content is delivered.
//!
//! A line of a raw source that is a dead letter of onceward (an envelope with the headers `onceward-scope` and
//! `onceward-generation`) is delivered as the message it contains, so that a file of dead letters can be appended to the source.
//!
//! A last line without a newline is delivered if the file is not followed, but the saved offset stays before it: the next run
//! redelivers it (deduplicated by its idempotency key), complete if the rest was written in between. The last line of a
//! followed file waits for its newline.
//!
//! # Which file
//! A file is identified by device and inode, its length, its first 4 KiB as far as they were delivered, and the last line
//! before the saved offset. A replaced, truncated or rewritten file is read from the beginning, as a new incarnation with
//! other positions, and the difference is logged as a warning. The evidence is saved before the first line is delivered.
//!
//! With [`follow`](FileConfig::follow) the source waits for the file, and for more lines at its end. When another file takes
//! its name (log rotation), the old one is read to its end and all of its lines are settled before the new one begins; also if
//! the rotation happened while no program read it, as long as the old file is in the same directory and uncompressed. Of
//! several such rotations only the file that was being read and the newest one are found.
//!
//! Only append to a file that is read: changes before the current offset are noticed by the next run only, and not all of them.
//!
//! Standard input, pipes and character devices are read once and have no saved offset; their positions differ between runs.
//!
//! # The envelope
//! One JSON object a line; other fields are refused.
//!
//! | field | value |
//! |---|---|
//! | `id` | string: the message id |
//! | `headers` | object of strings, or lists of strings for headers that repeat |
//! | `order_key` | string: the ordering key |
//! | `timestamp_ms` | number: the creation time of the message, in milliseconds since 1970 |
//! | `payload` | a string is the payload itself; any other JSON value is taken as its text |
//! | `payload_base64` | the payload in base64, in place of `payload` |
//! | `null_payload` | `true`, in place of a payload: the message has no payload, as a Kafka tombstone |
//!
//! A header value or ordering key that is not UTF-8 is written as `{"base64": "…"}`.
//!
//! # Limits
//! Directories, patterns, compressed files and Windows (files are identified by inode) are not supported, nor is a second
//! consumer of one file in one scope.

#[cfg(not(unix))]
compile_error!("onceward-file identifies files by device and inode, which only Unix has");

mod acker;
mod config;
mod consumer;
mod dead_letter;
mod envelope;
mod error;
mod file_source;
mod file_tail;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod inspect;
mod line_mark;
mod message;
mod progress;
mod publisher;
mod reader;

#[cfg(feature = "plugin")]
pub mod plugin;

pub use config::{FileConfig, Format};
pub use consumer::FileConsumer;
pub use file_source::check_content;
pub use inspect::{Backlog, backlog};
pub use publisher::FilePublisher;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct FileReadme;
