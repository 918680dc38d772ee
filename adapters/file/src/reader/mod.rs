//! Reads a source on a thread: splits it into lines, decodes batches of messages, and follows the file: [`Reader`].
//!
//! A thread instead of asynchronous reads: a pipe without a writer blocks forever, and a runtime waits for its blocking tasks when
//! it shuts down, but not for this thread.

pub(crate) mod lines;
mod poll_delay;

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use onceward::adapter::Checkpoint;
use onceward::{Error, Message};
use tokio::sync::mpsc;

use crate::config::FileConfig;
use crate::error;
use crate::file_source::attach::{self, AttachCause, AttachedFile};
use crate::file_source::incarnation::{self, FileChange, FileHead, FileIdentity};
use crate::file_source::signatures;
use crate::line_mark::LineMark;
use crate::message::LineDecoder;
use crate::reader::lines::{Line, LineReader};
use crate::reader::poll_delay::{PAUSES, PollDelay};

/// An event of the reader for the consumer, in the order of the source.
pub(crate) enum ReaderEvent {
    /// The following batches are from this file.
    Attached(Box<AttachedFile>),
    /// The next lines.
    Batch(LineBatch),
    /// Reading failed; the reader retries retryable failures.
    Failed(Error),
    /// The end of the source was reached.
    End,
}

/// Consecutive lines.
#[derive(Default)]
pub(crate) struct LineBatch {
    pub lines: Vec<ReadLine>,
    /// The offset after the last terminated line, empty or not.
    pub to: u64,
    /// The head of the file, if it has grown.
    pub head: Option<FileHead>,
    bytes: u64,
}

/// A line, decoded as a message.
pub(crate) struct ReadLine {
    pub mark: LineMark,
    /// Whether it has no newline and may still grow.
    pub unfinished: bool,
    pub message: Message,
}

/// Reads one source and sends what it reads.
pub(crate) struct Reader {
    pub path: PathBuf,
    pub config: FileConfig,
    pub origin: Arc<str>,
    pub events: mpsc::Sender<ReaderEvent>,
    /// Set while the reader has no more lines.
    pub at_end: Arc<AtomicBool>,
}

/// The reader stops: the consumer was dropped, or has received the error.
struct ReaderStopped;

/// The file being read, and its head as far as it was delivered.
struct OpenFile {
    file: Arc<File>,
    identity: FileIdentity,
    head: FileHead,
}

/// The state of a followed file at whose end the reader is.
enum FollowState {
    /// Lines were appended.
    Appended,
    /// It was truncated or rewritten.
    Changed(FileChange),
    /// Another file has taken its name.
    Rotated,
    /// The consumer was dropped.
    ConsumerDropped,
}

impl Reader {
    /// Reads a source without offsets to its end.
    pub(crate) fn read_stream(
        self,
        open: impl FnOnce() -> io::Result<Box<dyn Read + Send>>,
        incarnation: Arc<str>,
    ) {
        let source = match open() {
            Ok(source) => source,
            Err(error) => {
                // Ignored if the consumer was dropped.
                let _ = self.send(ReaderEvent::Failed(error::io("open", &self.path, error)));
                return;
            }
        };
        let _ = self.stream_to_end(LineReader::new(source, 0, self.config.max_message_bytes), incarnation);
    }

    fn stream_to_end(
        &self,
        mut lines: LineReader<Box<dyn Read + Send>>,
        incarnation: Arc<str>,
    ) -> Result<(), ReaderStopped> {
        let decoder = self.decoder(incarnation);
        let mut batch = LineBatch::default();
        loop {
            if !lines.holds_line() {
                // The next read may block: the batch is sent first.
                self.flush(&mut batch, None)?;
                // A stream that pauses has not ended, unless it has no end: more lines may follow until it is closed.
                self.at_end.store(self.config.follow, Ordering::Release);
            }
            match lines.next() {
                Ok(Some(line)) => {
                    self.check_first_line(&line, lines.buffered())?;
                    self.add(&mut batch, &decoder, &line, false, None)?;
                }
                Ok(None) => break,
                Err(error) => {
                    self.flush(&mut batch, None)?;
                    return self.send(ReaderEvent::Failed(error::io("read", &self.path, error)));
                }
            }
        }
        if let Some(line) = lines.rest() {
            self.check_first_line(&line, &[])?;
            self.add(&mut batch, &decoder, &line, false, None)?;
        }
        self.flush(&mut batch, None)?;
        self.send(ReaderEvent::End)
    }

    /// Reads files: `first`, or one that appears later, and in follow mode its successors.
    pub(crate) fn read_files(self, first: Option<AttachedFile>, checkpoint: Option<Checkpoint>) {
        // An error means that the consumer was dropped.
        let _ = self.files_to_end(first, checkpoint);
    }

    fn files_to_end(
        &self,
        first: Option<AttachedFile>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<(), ReaderStopped> {
        let mut file = match first {
            Some(file) => Box::new(file),
            None => {
                self.wait_for_file(|| attach::attach(&self.path, checkpoint.as_ref(), self.config.follow))?
            }
        };
        while let Some(next) = self.read_through(file)? {
            file = next;
        }
        self.send(ReaderEvent::End)
    }

    /// Reads one file to its end; returns its successor.
    fn read_through(&self, attached: Box<AttachedFile>) -> Result<Option<Box<AttachedFile>>, ReaderStopped> {
        let file = Arc::clone(&attached.file);
        let mut known =
            OpenFile { file: Arc::clone(&file), identity: attached.identity, head: attached.head };
        let decoder = self.decoder(Arc::clone(&attached.incarnation));
        let source = incarnation::ReadAt { file: Arc::clone(&file), offset: attached.offset };
        let mut lines = LineReader::new(source, attached.offset, self.config.max_message_bytes);
        let mut batch = LineBatch { to: attached.offset, ..LineBatch::default() };
        let mut pause = PollDelay::default();
        self.send(ReaderEvent::Attached(attached))?;
        loop {
            match lines.next() {
                Ok(Some(line)) => {
                    pause.reset();
                    self.check_first_line(&line, lines.buffered())?;
                    self.add(&mut batch, &decoder, &line, false, Some(&mut known))?;
                }
                Ok(None) => {
                    self.flush(&mut batch, Some(&mut known))?;
                    if !self.config.follow {
                        self.warn_if_truncated(&file, lines.position());
                        if let Some(line) = lines.rest() {
                            self.check_first_line(&line, &[])?;
                            self.add(&mut batch, &decoder, &line, true, Some(&mut known))?;
                        }
                        self.flush(&mut batch, Some(&mut known))?;
                        return Ok(None);
                    }
                    self.at_end.store(true, Ordering::Release);
                    let at_end = match self.watch(&known, lines.position(), &mut pause) {
                        Ok(at_end) => at_end,
                        Err(error) => {
                            self.report(error::io("follow", &self.path, error), &mut pause)?;
                            continue;
                        }
                    };
                    match at_end {
                        FollowState::ConsumerDropped => return Err(ReaderStopped),
                        FollowState::Appended => {}
                        FollowState::Changed(change) => {
                            return self
                                .wait_for_file(|| {
                                    let file = Arc::clone(&file);
                                    let cause = AttachCause::Changed(change.clone());
                                    AttachedFile::new_incarnation(&self.path, file, cause).map(Some)
                                })
                                .map(Some);
                        }
                        FollowState::Rotated => {
                            // No writer will complete this line.
                            if let Some(line) = lines.rest() {
                                self.check_first_line(&line, &[])?;
                                self.add(&mut batch, &decoder, &line, false, Some(&mut known))?;
                                self.flush(&mut batch, Some(&mut known))?;
                            }
                            return self
                                .wait_for_file(|| {
                                    let opened = attach::open(&self.path)?;
                                    let new_incarnation = |file| {
                                        AttachedFile::new_incarnation(&self.path, file, AttachCause::Rotated)
                                    };
                                    opened.map(new_incarnation).transpose()
                                })
                                .map(Some);
                        }
                    }
                }
                Err(error) => {
                    self.flush(&mut batch, Some(&mut known))?;
                    self.report(error::io("read", &self.path, error), &mut pause)?;
                }
            }
        }
    }

    /// Polls a followed file at whose end the reader is, until it grows, changes or is rotated.
    ///
    /// Appended lines are read only after a check of the head: a file that was rewritten in place and is already longer than
    /// before is not mistaken for one that grew.
    fn watch(&self, known: &OpenFile, position: u64, pause: &mut PollDelay) -> io::Result<FollowState> {
        let mut modified = None;
        while !self.events.is_closed() {
            let metadata = known.file.metadata()?;
            if metadata.len() < position {
                return Ok(FollowState::Changed(FileChange::Truncated {
                    now: metadata.len(),
                    before: position,
                }));
            }
            let grown = metadata.len() > position;
            let written = metadata.modified().ok();
            if (grown || modified != written) && !known.head.matches(&known.file)? {
                return Ok(FollowState::Changed(FileChange::HeadDiffers { bytes: known.head.bytes }));
            }
            modified = written;
            if grown {
                pause.rotated = false;
                return Ok(FollowState::Appended);
            }
            if incarnation::identity_at(&self.path)?.is_some_and(|now| now != known.identity) {
                if pause.rotated {
                    return Ok(FollowState::Rotated);
                }
                // Writers may still have the old file open: they get one long delay.
                pause.rotated = true;
                thread::sleep(PAUSES.1);
            } else {
                pause.sleep();
            }
        }
        Ok(FollowState::ConsumerDropped)
    }

    /// Calls `find` until it returns a file. Failures are sent to the consumer.
    fn wait_for_file(
        &self,
        mut find: impl FnMut() -> Result<Option<AttachedFile>, Error>,
    ) -> Result<Box<AttachedFile>, ReaderStopped> {
        let mut pause = PollDelay::default();
        loop {
            match find() {
                Ok(Some(file)) => return Ok(Box::new(file)),
                Ok(None) => {
                    self.at_end.store(true, Ordering::Release);
                    pause.sleep();
                    if self.events.is_closed() {
                        return Err(ReaderStopped);
                    }
                }
                Err(error) => self.report(error, &mut pause)?,
            }
        }
    }

    fn report(&self, error: Error, pause: &mut PollDelay) -> Result<(), ReaderStopped> {
        self.send(ReaderEvent::Failed(error))?;
        pause.sleep();
        Ok(())
    }

    /// Logs a file that was truncated while it was read; the next run will recognise the change.
    fn warn_if_truncated(&self, file: &File, position: u64) {
        if let Ok(metadata) = file.metadata()
            && metadata.len() < position
        {
            tracing::warn!(
                path = %self.path.display(),
                bytes_read = position,
                bytes_now = metadata.len(),
                "file truncated while it was read; removed lines that were not read are lost"
            );
        }
    }

    /// Refuses a source without lines of text at its first line, before anything is delivered.
    fn check_first_line(&self, line: &Line, following: &[u8]) -> Result<(), ReaderStopped> {
        if line.start > 0 {
            return Ok(());
        }
        let room = signatures::HEAD_BYTES.saturating_sub(line.content.len() + 1);
        let ending: &[u8] = if line.terminated { b"\n" } else { b"" };
        let head = [
            &line.content[..line.content.len().min(signatures::HEAD_BYTES)],
            ending,
            &following[..following.len().min(room)],
        ];
        match signatures::refusal(&head.concat()) {
            None => Ok(()),
            Some(what) => {
                self.send(ReaderEvent::Failed(error::config("read", &self.path, what)))?;
                Err(ReaderStopped)
            }
        }
    }

    fn decoder(&self, incarnation: Arc<str>) -> LineDecoder {
        LineDecoder {
            format: self.config.format,
            limit: self.config.max_message_bytes,
            origin: Arc::clone(&self.origin),
            incarnation,
            own_headers: self.config.own_headers.clone(),
        }
    }

    fn add(
        &self,
        batch: &mut LineBatch,
        decoder: &LineDecoder,
        line: &Line,
        unfinished: bool,
        known: Option<&mut OpenFile>,
    ) -> Result<(), ReaderStopped> {
        if !unfinished {
            batch.to = line.end;
        }
        if line.bytes == 0 {
            return Ok(());
        }
        batch.bytes += line.content.len() as u64;
        let mark = LineMark { start: line.start, end: line.end, digest: line.digest };
        batch.lines.push(ReadLine { mark, unfinished, message: decoder.message(line, false) });
        if batch.lines.len() >= self.config.batch_messages || batch.bytes >= self.config.batch_bytes {
            self.flush(batch, known)?;
        }
        Ok(())
    }

    /// Sends the batch, unless it is empty.
    fn flush(&self, batch: &mut LineBatch, known: Option<&mut OpenFile>) -> Result<(), ReaderStopped> {
        if batch.lines.is_empty() {
            return Ok(());
        }
        self.at_end.store(false, Ordering::Release);
        let to = batch.to;
        let mut full = std::mem::replace(batch, LineBatch { to, ..LineBatch::default() });
        if let Some(known) = known {
            // A head that cannot be read now is read with the next batch; a changed one is detected at the end of the file.
            let end = full.lines.last().map_or(to, |line| line.mark.end.max(to));
            full.head = known.head.grown(&known.file, end).ok().flatten();
            known.head = full.head.unwrap_or(known.head);
        }
        self.send(ReaderEvent::Batch(full))
    }

    fn send(&self, event: ReaderEvent) -> Result<(), ReaderStopped> {
        self.events.blocking_send(event).map_err(|_| ReaderStopped)
    }
}
