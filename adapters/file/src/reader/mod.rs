//! The thread that reads: lines become batches of messages, and in follow mode the file is watched at its end.
//!
//! A thread rather than asynchronous reads: a pipe without a writer blocks for ever, and a runtime waits for its blocking
//! tasks when it ends, but not for this thread.

pub(crate) mod lines;
mod poll_delay;

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use onceward::{Checkpoint, Error, Message};
use tokio::sync::mpsc;

use crate::config::FileConfig;
use crate::error;
use crate::file_source::attach::{self, AttachedFile, Cause};
use crate::file_source::incarnation::{self, FileChange, FileHead, FileIdentity};
use crate::file_source::signatures;
use crate::line_mark::LineMark;
use crate::message::LineDecoder;
use crate::reader::lines::{Line, LineReader};
use crate::reader::poll_delay::{PAUSES, PollDelay};

/// What the reader tells the consumer, in the order of the source.
pub(crate) enum Event {
    /// The batches that follow are of this file.
    Attached(Box<AttachedFile>),
    /// The next lines.
    Batch(Batch),
    /// Reading failed; a retryable failure is tried again by itself.
    Failed(Error),
    /// The source is at its end.
    End,
}

/// Lines that were read one after the other.
#[derive(Default)]
pub(crate) struct Batch {
    pub lines: Vec<ReadLine>,
    /// The offset behind the last line that ended, message or empty.
    pub to: u64,
    /// The head of the file, if it has grown.
    pub head: Option<FileHead>,
    bytes: u64,
}

/// One line as a message.
pub(crate) struct ReadLine {
    pub mark: LineMark,
    /// It has no newline and may still grow.
    pub unfinished: bool,
    pub message: Message,
}

/// Reads one source and sends what it reads.
pub(crate) struct Reader {
    pub path: PathBuf,
    pub config: FileConfig,
    pub origin: Arc<str>,
    pub events: mpsc::Sender<Event>,
    /// Set while the reader has nothing more to give.
    pub at_end: Arc<AtomicBool>,
}

/// Reading is over: the consumer is gone, or knows why its source cannot be read.
struct Stopped;

/// The file that is being read, and its head as far as it was delivered.
struct OpenFile {
    file: Arc<File>,
    identity: FileIdentity,
    head: FileHead,
}

/// What became of a followed file at its end.
enum AtEnd {
    More,
    Changed(FileChange),
    Rotated,
    Gone,
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
                // Nobody is there to hear of it once the consumer is gone.
                let _ = self.send(Event::Failed(error::io("open", &self.path, error)));
                return;
            }
        };
        let _ = self.stream_to_end(LineReader::new(source, 0, self.config.max_message_bytes), incarnation);
    }

    fn stream_to_end(
        &self,
        mut lines: LineReader<Box<dyn Read + Send>>,
        incarnation: Arc<str>,
    ) -> Result<(), Stopped> {
        let decoder = self.decoder(incarnation);
        let mut batch = Batch::default();
        loop {
            if !lines.holds_line() {
                // The next read may wait for the other side: what is there goes first.
                self.flush(&mut batch, None)?;
                self.at_end.store(true, Ordering::Release);
            }
            match lines.next() {
                Ok(Some(line)) => {
                    self.look(&line, lines.buffered())?;
                    self.add(&mut batch, &decoder, &line, false, None)?;
                }
                Ok(None) => break,
                Err(error) => {
                    self.flush(&mut batch, None)?;
                    return self.send(Event::Failed(error::io("read", &self.path, error)));
                }
            }
        }
        if let Some(line) = lines.rest() {
            self.look(&line, &[])?;
            self.add(&mut batch, &decoder, &line, false, None)?;
        }
        self.flush(&mut batch, None)?;
        self.send(Event::End)
    }

    /// Reads files: `first`, or the one that is waited for, and in follow mode those that follow it.
    pub(crate) fn read_files(self, first: Option<AttachedFile>, checkpoint: Option<Checkpoint>) {
        // An error here says that the consumer is gone.
        let _ = self.files_to_end(first, checkpoint);
    }

    fn files_to_end(
        &self,
        first: Option<AttachedFile>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<(), Stopped> {
        let mut file = match first {
            Some(file) => Box::new(file),
            None => {
                self.wait_for_file(|| attach::attach(&self.path, checkpoint.as_ref(), self.config.follow))?
            }
        };
        while let Some(next) = self.read_through(file)? {
            file = next;
        }
        self.send(Event::End)
    }

    /// Reads one file to its end; answers the one that comes after it.
    fn read_through(&self, attached: Box<AttachedFile>) -> Result<Option<Box<AttachedFile>>, Stopped> {
        let file = Arc::clone(&attached.file);
        let mut known =
            OpenFile { file: Arc::clone(&file), identity: attached.identity, head: attached.head };
        let decoder = self.decoder(Arc::clone(&attached.incarnation));
        let source = incarnation::ReadAt { file: Arc::clone(&file), offset: attached.offset };
        let mut lines = LineReader::new(source, attached.offset, self.config.max_message_bytes);
        let mut batch = Batch { to: attached.offset, ..Batch::default() };
        let mut pause = PollDelay::default();
        self.send(Event::Attached(attached))?;
        loop {
            match lines.next() {
                Ok(Some(line)) => {
                    pause.reset();
                    self.look(&line, lines.buffered())?;
                    self.add(&mut batch, &decoder, &line, false, Some(&mut known))?;
                }
                Ok(None) => {
                    self.flush(&mut batch, Some(&mut known))?;
                    if !self.config.follow {
                        self.note_truncation(&file, lines.position());
                        if let Some(line) = lines.rest() {
                            self.look(&line, &[])?;
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
                        AtEnd::Gone => return Err(Stopped),
                        AtEnd::More => {}
                        AtEnd::Changed(change) => {
                            return self
                                .wait_for_file(|| {
                                    let file = Arc::clone(&file);
                                    let cause = Cause::Changed(change.clone());
                                    AttachedFile::new_incarnation(&self.path, file, cause).map(Some)
                                })
                                .map(Some);
                        }
                        AtEnd::Rotated => {
                            // Nobody will end this line: it is as long as it will ever be.
                            if let Some(line) = lines.rest() {
                                self.look(&line, &[])?;
                                self.add(&mut batch, &decoder, &line, false, Some(&mut known))?;
                                self.flush(&mut batch, Some(&mut known))?;
                            }
                            return self
                                .wait_for_file(|| {
                                    let opened = attach::open(&self.path)?;
                                    let new_incarnation = |file| {
                                        AttachedFile::new_incarnation(&self.path, file, Cause::Rotated)
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

    /// Watches a followed file at whose end the reader stands until there is more of it, or it ends for good.
    ///
    /// What was appended is read only after a look at the head: a file that was rewritten in place and is already longer
    /// than before is not taken for one that grew.
    fn watch(&self, known: &OpenFile, position: u64, pause: &mut PollDelay) -> io::Result<AtEnd> {
        let mut modified = None;
        while !self.events.is_closed() {
            let metadata = known.file.metadata()?;
            if metadata.len() < position {
                return Ok(AtEnd::Changed(FileChange::Truncated { now: metadata.len(), before: position }));
            }
            let grown = metadata.len() > position;
            let written = metadata.modified().ok();
            if (grown || modified != written) && !known.head.matches(&known.file)? {
                return Ok(AtEnd::Changed(FileChange::HeadDiffers { bytes: known.head.bytes }));
            }
            modified = written;
            if grown {
                pause.rotated = false;
                return Ok(AtEnd::More);
            }
            if incarnation::identity_at(&self.path)?.is_some_and(|now| now != known.identity) {
                if pause.rotated {
                    return Ok(AtEnd::Rotated);
                }
                // Writers may still have the old file open: give them one long pause.
                pause.rotated = true;
                thread::sleep(PAUSES.1);
            } else {
                pause.sleep();
            }
        }
        Ok(AtEnd::Gone)
    }

    /// Calls `find` until it gives a file. Failures are reported; one that does not pass ends the run there.
    fn wait_for_file(
        &self,
        mut find: impl FnMut() -> Result<Option<AttachedFile>, Error>,
    ) -> Result<Box<AttachedFile>, Stopped> {
        let mut pause = PollDelay::default();
        loop {
            match find() {
                Ok(Some(file)) => return Ok(Box::new(file)),
                Ok(None) => {
                    self.at_end.store(true, Ordering::Release);
                    pause.sleep();
                    if self.events.is_closed() {
                        return Err(Stopped);
                    }
                }
                Err(error) => self.report(error, &mut pause)?,
            }
        }
    }

    fn report(&self, error: Error, pause: &mut PollDelay) -> Result<(), Stopped> {
        self.send(Event::Failed(error))?;
        pause.sleep();
        Ok(())
    }

    /// A file that lost bytes that were read is worth a word; the next run sees that it is not the same.
    fn note_truncation(&self, file: &File, position: u64) {
        if let Ok(metadata) = file.metadata()
            && metadata.len() < position
        {
            tracing::warn!(
                path = %self.path.display(),
                bytes_read = position,
                bytes_now = metadata.len(),
                "the file was truncated while it was read; what was cut off and not yet read is not delivered"
            );
        }
    }

    /// Ends the run at the first line of a source that does not hold lines of text, before anything of it is delivered.
    fn look(&self, line: &Line, behind: &[u8]) -> Result<(), Stopped> {
        if line.start > 0 {
            return Ok(());
        }
        let room = signatures::HEAD_BYTES.saturating_sub(line.content.len() + 1);
        let ending: &[u8] = if line.terminated { b"\n" } else { b"" };
        let head = [
            &line.content[..line.content.len().min(signatures::HEAD_BYTES)],
            ending,
            &behind[..behind.len().min(room)],
        ];
        match signatures::refusal(&head.concat()) {
            None => Ok(()),
            Some(what) => {
                self.send(Event::Failed(error::config("read", &self.path, what)))?;
                Err(Stopped)
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
        batch: &mut Batch,
        decoder: &LineDecoder,
        line: &Line,
        unfinished: bool,
        known: Option<&mut OpenFile>,
    ) -> Result<(), Stopped> {
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

    /// Sends the batch, if it says anything new.
    fn flush(&self, batch: &mut Batch, known: Option<&mut OpenFile>) -> Result<(), Stopped> {
        if batch.lines.is_empty() {
            return Ok(());
        }
        self.at_end.store(false, Ordering::Release);
        let to = batch.to;
        let mut full = std::mem::replace(batch, Batch { to, ..Batch::default() });
        if let Some(known) = known {
            // A head that cannot be read now is read with the next batch; a changed one shows at the end of the file.
            let end = full.lines.last().map_or(to, |line| line.mark.end.max(to));
            full.head = known.head.grown(&known.file, end).ok().flatten();
            known.head = full.head.unwrap_or(known.head);
        }
        self.send(Event::Batch(full))
    }

    fn send(&self, event: Event) -> Result<(), Stopped> {
        self.events.blocking_send(event).map_err(|_| Stopped)
    }
}
