//! What consumer and acker share: which lines are out, which wait to come again, and how far to save.

pub(crate) mod redelivery;
pub(crate) mod watermark;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onceward::{Checkpoint, CheckpointStore, Error, ErrorKind, Message, Scope, Settled, Settlement, Tag};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::file_source::attach::AttachedFile;
use crate::file_source::incarnation::{FileEvidence, FileHead, FileIdentity};
use crate::line_mark::LineMark;
use crate::message::LineDecoder;
use crate::progress::watermark::{LineWatermark, SettleOutcome};
use crate::reader::Batch;

/// A line that was dropped unsettled comes again after this pause: a consumer of it that only drops does not spin.
const ABANDONED_PAUSE: Duration = Duration::from_secs(1);

/// A line that waits to be delivered again.
#[derive(Clone)]
pub(crate) struct PendingRedelivery {
    pub due: Instant,
    pub mark: LineMark,
    /// CheckpointTarget where it cannot be read again.
    pub message: Option<Message>,
}

/// The file or stream that is being read.
pub(crate) struct CurrentSource {
    /// `None` for a stream.
    pub file: Option<Arc<File>>,
    pub decoder: LineDecoder,
    identity: Option<FileIdentity>,
    head: FileHead,
    /// How far it was delivered, the unfinished line included.
    length: u64,
    /// Counts the incarnations of this run; part of each tag.
    epoch: u32,
}

/// The state behind the lock; nothing waits while it is held.
pub(crate) struct Progress {
    closed: bool,
    pub current: CurrentSource,
    watermark: LineWatermark,
    waiting: Vec<PendingRedelivery>,
    /// The messages in flight that cannot be read again, by offset: of a stream, and the unfinished line.
    in_memory: HashMap<u64, Message>,
}

/// What is known to be in the checkpoint store.
#[derive(Clone, Copy, PartialEq, Eq)]
struct SavedCheckpoint {
    epoch: u32,
    offset: u64,
    head_bytes: u64,
}

/// Where the offset of a file is kept.
pub(crate) struct CheckpointTarget {
    pub checkpoints: Arc<dyn CheckpointStore>,
    pub scope: Scope,
    /// The file's absolute path.
    pub source: String,
}

/// State and checkpoint store, shared by consumer and acker.
pub(crate) struct ProgressHandle {
    progress: Mutex<Progress>,
    /// Woken when a line waits to come again, and when the last one out is settled.
    pub changed: Notify,
    /// `None` for a stream.
    kept: Option<CheckpointTarget>,
    /// Held while saving, so that checkpoints are saved one after the other.
    saved: tokio::sync::Mutex<Option<SavedCheckpoint>>,
}

impl ProgressHandle {
    pub(crate) fn new(kept: Option<CheckpointTarget>, decoder: LineDecoder) -> Arc<Self> {
        let current = CurrentSource {
            file: None,
            decoder,
            identity: None,
            head: FileHead::empty(),
            length: 0,
            epoch: 0,
        };
        let progress = Progress {
            closed: false,
            current,
            watermark: LineWatermark::new(0, None),
            waiting: Vec::new(),
            in_memory: HashMap::new(),
        };
        Arc::new(Self {
            progress: Mutex::new(progress),
            changed: Notify::new(),
            kept,
            saved: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves how far the file is settled, if that is further than what was saved.
    pub(crate) async fn save(&self) -> Result<(), Error> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let mut saved = self.saved.lock().await;
        let Some((next, checkpoint)) = self.lock().checkpoint(*saved)? else { return Ok(()) };
        let save = kept.checkpoints.save_checkpoint(&kept.scope, &kept.source, &checkpoint);
        save.await.map_err(can_be_mended)?;
        *saved = Some(next);
        Ok(())
    }

    /// Makes sure that the file will be recognised if the program dies after `batch` was delivered: a line is never
    /// delivered under an incarnation whose evidence is not durable.
    pub(crate) async fn recognise(&self, batch: &Batch) -> Result<(), Error> {
        {
            let mut progress = self.lock();
            let current = &mut progress.current;
            current.head = batch.head.unwrap_or(current.head);
            let end = batch.lines.last().map_or(batch.to, |line| line.mark.end);
            current.length = current.length.max(end);
        }
        self.save().await
    }

    /// Goes over to `attached`, once every line of the file before it is settled.
    pub(crate) async fn attach(&self, attached: &AttachedFile) {
        let mut saved = self.saved.lock().await;
        let mut progress = self.lock();
        let epoch = progress.current.epoch + 1;
        let decoder = LineDecoder {
            incarnation: Arc::clone(&attached.incarnation),
            ..progress.current.decoder.clone()
        };
        let resumed = attached.resumed.as_ref();
        progress.current = CurrentSource {
            file: Some(Arc::clone(&attached.file)),
            decoder,
            identity: Some(attached.identity),
            head: attached.head,
            length: resumed.map_or(0, |evidence| evidence.length),
            epoch,
        };
        progress.watermark =
            LineWatermark::new(attached.offset, resumed.and_then(|evidence| evidence.passed));
        progress.waiting.clear();
        progress.in_memory.clear();
        *saved = resumed.map(|_| SavedCheckpoint {
            epoch,
            offset: attached.offset,
            head_bytes: attached.head.bytes,
        });
    }
}

/// A refusal by a store in use (a missing permission, password or table) is fixed by an operator and is no fault of a line: the
/// call is repeated, as claims are.
fn can_be_mended(error: Error) -> Error {
    if error.is_retryable() || error.kind() == ErrorKind::Corrupt {
        return error;
    }
    let what = "the store refused it; fix the cause below, the call is repeated";
    Error::new(ErrorKind::Unavailable, "keep how far the file was read", what).with_source(error)
}

impl Progress {
    /// Answers `TooLate` to every settlement from now on.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// How many delivered lines are not settled.
    pub(crate) fn unsettled(&self) -> usize {
        self.watermark.unsettled()
    }

    /// Notes that a line is delivered for the first time; lines come in the order of the file.
    pub(crate) fn deliver(&mut self, mark: LineMark, unfinished: bool, message: &Message) -> Tag {
        self.watermark.deliver(mark, unfinished);
        if unfinished || self.current.file.is_none() {
            self.in_memory.insert(mark.start, message.clone());
        }
        self.tag(mark.start, 1)
    }

    /// Notes that everything before `offset` was delivered or is no message.
    pub(crate) fn read_to(&mut self, offset: u64) {
        self.watermark.read_to(offset);
    }

    /// Notes one settlement.
    pub(crate) fn settle(&mut self, tag: Tag, settlement: Settlement, now: Instant) -> Settled {
        let delivery = tag.epoch as u32;
        if self.closed || tag.epoch >> 32 != u64::from(self.current.epoch) {
            return Settled::TooLate;
        }
        let pause = match settlement {
            Settlement::Ack => None,
            Settlement::Reject => {
                tracing::warn!(
                    origin = %self.current.decoder.origin,
                    offset = tag.number,
                    "a message was rejected; a file has no dead-letter rule of its own, so it is dropped"
                );
                None
            }
            Settlement::Retry { after } => Some(after),
            _ => Some(ABANDONED_PAUSE),
        };
        let Some(pause) = pause else {
            return match self.watermark.settle(tag.number, delivery) {
                SettleOutcome::Done => {
                    self.in_memory.remove(&tag.number);
                    Settled::Done
                }
                SettleOutcome::Stale => Settled::TooLate,
            };
        };
        match self.watermark.give_back(tag.number, delivery) {
            Some(mark) => {
                let message = self.in_memory.get(&mark.start).cloned();
                self.waiting.push(PendingRedelivery { due: now + pause, mark, message });
                Settled::Done
            }
            None => Settled::TooLate,
        }
    }

    /// When the next waiting line is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.due).min()
    }

    /// True if no line waits to come again.
    pub(crate) fn has_no_pending_redelivery(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The waiting lines that are due, in the order of the file; at most `limit` lines, and about `bytes` bytes.
    pub(crate) fn due(&self, now: Instant, limit: usize, bytes: u64) -> Vec<PendingRedelivery> {
        let mut due: Vec<_> = self.waiting.iter().filter(|waiting| waiting.due <= now).cloned().collect();
        due.sort_by_key(|waiting| waiting.mark.start);
        due.truncate(limit);
        let mut sum = 0;
        let fitting = due.iter().take_while(|waiting| {
            let before = sum;
            sum += waiting.mark.end - waiting.mark.start;
            before < bytes
        });
        let fitting = fitting.count();
        due.truncate(fitting);
        due
    }

    /// Notes that a waiting line is delivered again.
    pub(crate) fn deliver_again(&mut self, mark: LineMark) -> Option<Tag> {
        self.waiting.retain(|waiting| waiting.mark.start != mark.start);
        let delivery = self.watermark.deliver_again(mark.start)?;
        Some(self.tag(mark.start, delivery))
    }

    /// Notes that a waiting line cannot be delivered again.
    pub(crate) fn give_up(&mut self, mark: LineMark) {
        self.waiting.retain(|waiting| waiting.mark.start != mark.start);
        self.watermark.give_up(mark.start);
    }

    fn tag(&self, start: u64, delivery: u32) -> Tag {
        Tag { epoch: u64::from(self.current.epoch) << 32 | u64::from(delivery), number: start }
    }

    /// The checkpoint to save, if it says more than what was saved.
    fn checkpoint(
        &self,
        saved: Option<SavedCheckpoint>,
    ) -> Result<Option<(SavedCheckpoint, Checkpoint)>, Error> {
        let current = &self.current;
        let Some(identity) = current.identity else { return Ok(None) };
        let next = SavedCheckpoint {
            epoch: current.epoch,
            offset: self.watermark.offset(),
            head_bytes: current.head.bytes,
        };
        if self.closed || saved == Some(next) {
            return Ok(None);
        }
        let evidence = FileEvidence {
            identity,
            length: current.length,
            head: current.head,
            passed: self.watermark.passed(),
        };
        let checkpoint = Checkpoint {
            incarnation: current.decoder.incarnation.to_string(),
            offset: next.offset,
            evidence: evidence.write()?,
        };
        Ok(Some((next, checkpoint)))
    }
}
