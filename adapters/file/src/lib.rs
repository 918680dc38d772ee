//! Files and standard input as a source for [`onceward`], and files as a place for dead letters.
//!
//! [`FileConsumer`] delivers each line of a file as a message and keeps, in a
//! [`CheckpointStore`](onceward::CheckpointStore), the offset before which every line is settled. [`FilePublisher`]
//! appends messages to files, durable on return.
//!
//! ```text
//! file ─▶ reader thread ─▶ batches ─▶ receive ─▶ pipeline
//!                                                   │ settle
//!           checkpoint store ◀─ offset ◀─ watermark ◀┘
//! ```
//!
//! # Lines
//! A line ends with `\n` or `\r\n`; its content may be any bytes. **An empty line is no message** and is passed over.
//! A line that is too long, or in envelope format no envelope, is delivered with its [`Defect`](onceward::Defect).
//! [`Position`](onceward::Position) is the byte offset of the line's beginning in this incarnation of the file.
//!
//! A UTF-8 byte order mark at the beginning is dropped. Compressed files, text in UTF-16 or UTF-32 and other binary formats are
//! recognised by their first bytes and refused, with a hint at what to do; nothing of them is delivered.
//!
//! A line of a raw source that is a dead letter of onceward (an envelope with the headers `onceward-scope` and
//! `onceward-generation`) is delivered as the message in it, so that the file of dead letters can be appended to the source.
//!
//! A last line without a newline is delivered if the file is not followed, but the kept offset stays before it: it comes
//! again with the next run (and its idempotency key tells), whole if the rest was written meanwhile. A followed file's
//! last line waits for its newline.
//!
//! # Which file
//! A file is recognised by device and inode, its length, its first 4 KiB as far as they were delivered and the last line
//! before the kept offset. If it was replaced, truncated or rewritten it is read from the beginning, as a new incarnation
//! with other positions, and a warning says what was noticed. The evidence is saved before the first line is delivered.
//!
//! With [`follow`](FileConfig::follow) the file is waited for and watched at its end. When another file takes its name
//! (log rotation), the old one is read to its end and all of its lines settled before the new one begins; also if that
//! happened while nobody read, as long as the old one is still in the same directory, uncompressed. Of several rotations
//! in such a time only the file that was being read and the newest one are found.
//!
//! Only append to a file that is read: bytes that are changed behind the reader are not noticed before the next run, and
//! not all of them then.
//!
//! Standard input, pipes and character devices are read once and keep no offset; their positions differ with each run.
//!
//! # The envelope
//! One JSON object a line; other fields are refused.
//!
//! | field | value |
//! |---|---|
//! | `id` | string: the message id |
//! | `headers` | object of strings, or lists of strings for headers that repeat |
//! | `order_key` | string: the ordering key |
//! | `timestamp_ms` | number: when the message was made, in milliseconds since 1970 |
//! | `payload` | a string is the payload; of any other JSON value its text as written is |
//! | `payload_base64` | the payload in base64, in place of `payload` |
//! | `null_payload` | `true`, in place of a payload: the message has no payload, as a Kafka tombstone |
//!
//! A header value or ordering key that is not UTF-8 is written as `{"base64": "…"}`.
//!
//! # Not here
//! No watching of directories or patterns, no compressed files, no Windows (files are recognised by inode), and no second
//! consumer of one file in one scope.

#[cfg(not(unix))]
compile_error!("onceward-file recognises files by device and inode, which only Unix has");

mod acker;
mod config;
mod consumer;
mod dead_letter;
mod envelope;
mod error;
mod file_source;
mod file_tail;
#[cfg(fuzzing)]
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
