//! Tracks lines in flight and pending redeliveries, and saves the offset: [`Progress`], [`ProgressHandle`].

pub(crate) mod redelivery;
pub(crate) mod watermark;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onceward::adapter::{Checkpoint, CheckpointStore, Settled, Settlement, Tag};
use onceward::{Error, ErrorKind, Message, Scope};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::file_source::attach::AttachedFile;
use crate::file_source::incarnation::{FileEvidence, FileHead, FileIdentity};
use crate::line_mark::LineMark;
use crate::message::LineDecoder;
use crate::progress::watermark::{LineWatermark, SettleOutcome};
use crate::reader::LineBatch;

/// Delay before a line that was dropped unsettled is redelivered, so that dropping in a loop does not spin.
const ABANDONED_DELAY: Duration = Duration::from_secs(1);

/// A line that waits for its redelivery.
#[derive(Clone)]
pub(crate) struct PendingRedelivery {
    pub due: Instant,
    pub mark: LineMark,
    /// The message, if it cannot be read again.
    pub message: Option<Message>,
}

/// The file or stream that is being read.
pub(crate) struct CurrentSource {
    /// `None` for a stream.
    pub file: Option<Arc<File>>,
    pub decoder: LineDecoder,
    identity: Option<FileIdentity>,
    head: FileHead,
    /// The offset up to which it was delivered, the unfinished line included.
    length: u64,
    /// Counts the incarnations of this run; part of each tag.
    epoch: u32,
}

/// The state of deliveries, behind a lock that is never held across a wait.
pub(crate) struct Progress {
    closed: bool,
    pub current: CurrentSource,
    watermark: LineWatermark,
    waiting: Vec<PendingRedelivery>,
    /// Messages in flight that cannot be read again, by offset: those of a stream, and the unfinished line.
    in_memory: HashMap<u64, Message>,
}

/// The values last saved in the checkpoint store.
#[derive(Clone, Copy, PartialEq, Eq)]
struct SavedCheckpoint {
    epoch: u32,
    offset: u64,
    head_bytes: u64,
}

/// Where the offset of a file is saved.
pub(crate) struct CheckpointTarget {
    pub checkpoints: Arc<dyn CheckpointStore>,
    pub scope: Scope,
    /// The file's absolute path.
    pub source: String,
}

/// The state and the checkpoint store, shared by consumer and acker.
pub(crate) struct ProgressHandle {
    progress: Mutex<Progress>,
    /// Notified when a redelivery is scheduled, and when the last line in flight is settled.
    pub changed: Notify,
    /// `None` for a stream.
    kept: Option<CheckpointTarget>,
    /// Locked while saving, so that checkpoints are saved in order.
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

    /// Saves the offset before which every line is settled, if it has advanced.
    pub(crate) async fn save(&self) -> Result<(), Error> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let mut saved = self.saved.lock().await;
        let Some((next, checkpoint)) = self.lock().checkpoint(*saved)? else { return Ok(()) };
        let save = kept.checkpoints.save_checkpoint(&kept.scope, &kept.source, &checkpoint);
        save.await.map_err(retryable_save_error)?;
        *saved = Some(next);
        Ok(())
    }

    /// Saves the evidence that `batch` needs, so that the file is recognised after a crash: no line is delivered under an
    /// incarnation whose evidence is not durable.
    pub(crate) async fn save_evidence(&self, batch: &LineBatch) -> Result<(), Error> {
        {
            let mut progress = self.lock();
            let current = &mut progress.current;
            current.head = batch.head.unwrap_or(current.head);
            let end = batch.lines.last().map_or(batch.to, |line| line.mark.end);
            current.length = current.length.max(end);
        }
        self.save().await
    }

    /// Switches to `attached`, once every line of the previous file is settled.
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

/// Makes a refusal of the store (a missing permission, password or table) retryable: an operator can fix it, and it is not caused
/// by a line.
fn retryable_save_error(error: Error) -> Error {
    if error.is_retryable() || error.kind() == ErrorKind::Corrupt {
        return error;
    }
    let what = "the store refused it; fix the cause below, the call is retried";
    Error::new(ErrorKind::Unavailable, "save the offset of a file", what).with_source(error)
}

impl Progress {
    /// Returns `TooLate` for every settlement from now on.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// The number of delivered lines that are not settled.
    pub(crate) fn unsettled(&self) -> usize {
        self.watermark.unsettled()
    }

    /// Records the first delivery of a line; calls are in file order.
    pub(crate) fn deliver(&mut self, mark: LineMark, unfinished: bool, message: &Message) -> Tag {
        self.watermark.deliver(mark, unfinished);
        if unfinished || self.current.file.is_none() {
            self.in_memory.insert(mark.start, message.clone());
        }
        self.tag(mark.start, 1)
    }

    /// Records that everything before `offset` was delivered or is not a message.
    pub(crate) fn read_to(&mut self, offset: u64) {
        self.watermark.read_to(offset);
    }

    /// Records one settlement.
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
                    "message rejected and dropped; a file has no dead-letter rule of its own"
                );
                None
            }
            Settlement::Retry { after } => Some(after),
            _ => Some(ABANDONED_DELAY),
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

    /// The time of the next redelivery.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.due).min()
    }

    /// True if no redelivery is pending.
    pub(crate) fn has_no_pending_redelivery(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The redeliveries that are due, in file order; at most `limit` lines, and about `bytes` bytes.
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

    /// Records the redelivery of a line.
    pub(crate) fn deliver_again(&mut self, mark: LineMark) -> Option<Tag> {
        self.waiting.retain(|waiting| waiting.mark.start != mark.start);
        let delivery = self.watermark.deliver_again(mark.start)?;
        Some(self.tag(mark.start, delivery))
    }

    /// Records that a line cannot be redelivered.
    pub(crate) fn give_up(&mut self, mark: LineMark) {
        self.waiting.retain(|waiting| waiting.mark.start != mark.start);
        self.watermark.give_up(mark.start);
    }

    fn tag(&self, start: u64, delivery: u32) -> Tag {
        Tag { epoch: u64::from(self.current.epoch) << 32 | u64::from(delivery), number: start }
    }

    /// The checkpoint to save, if it differs from the saved one.
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
