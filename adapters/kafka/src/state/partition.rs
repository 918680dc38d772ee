//! One assignment of one partition: records that are ready or in flight, and the offset to commit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};
use onceward::Message;

use crate::log_id::LogId;
use crate::state::watermark::OffsetWatermark;

/// After how long an unconfirmed commit is sent again.
const RESEND_COMMIT: Duration = Duration::from_secs(1);

/// The topic and number of a partition.
pub(crate) type TopicPartition = (Arc<str>, i32);

/// One assignment of one partition. The tags of its deliveries carry its epoch; a later assignment has another one.
#[derive(Debug)]
pub(crate) struct AssignedPartition {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    /// The log that its offsets refer to, and the incarnation in its positions.
    pub(crate) log: LogId,
    pub(crate) incarnation: Arc<str>,
    /// The first offset to deliver, if known.
    pub(crate) start: Option<u64>,
    pub(crate) watermark: OffsetWatermark,
    /// Records to hand out, ordered by offset, and their bytes.
    pub(crate) ready: VecDeque<ReadyRecord>,
    pub(crate) ready_bytes: usize,
    /// True if the partition is in the queue of turns.
    pub(crate) queued: bool,
    /// Records handed out to the pipeline, by the number of their tag.
    pub(crate) in_flight: HashMap<u64, InFlightRecord>,
    /// The number of records waiting in this process for a retry.
    pub(crate) delayed: usize,
    /// The offset last sent to be committed, unless the commit failed, and when it was sent.
    pub(crate) sent_commit: Option<(u64, Instant)>,
    /// The offset that the broker confirmed. The client does not report every commit lost in a rebalance.
    pub(crate) confirmed: Option<u64>,
    /// When a record last arrived, or the end was last checked.
    pub(crate) quiet_since: Instant,
    /// The end of the log up to which no more records were found.
    pub(crate) searched_to: Option<u64>,
    /// The number of stalls since the last record.
    pub(crate) stalls: u32,
    /// In a retry topic: the due time of the last delivered copy, which also delays the records behind it.
    pub(crate) delayed_until: Option<Instant>,
    /// True for a retry topic.
    pub(crate) is_retry_topic: bool,
    /// The pipeline has paused the partition.
    pub(crate) paused: bool,
    /// The log may have been replaced: nothing is delivered or committed until that is resolved.
    pub(crate) doubtful: bool,
    /// The log was reported to end before delivered records: the monitor verifies it.
    pub(crate) suspect: bool,
    /// The partition is being revoked: nothing more is handed out.
    pub(crate) leaving: bool,
}

/// A record to hand out.
#[derive(Debug)]
pub(crate) struct ReadyRecord {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) message: Message,
}

/// A record handed out to the pipeline; kept, so that it can be handed out again in its place.
#[derive(Debug)]
pub(crate) struct InFlightRecord {
    pub(crate) offset: u64,
    pub(crate) message: Message,
    /// A copy is being published to a retry topic.
    pub(crate) copying: bool,
}

impl AssignedPartition {
    pub(crate) fn new(topic: Arc<str>, number: i32, log: LogId, incarnation: Arc<str>, now: Instant) -> Self {
        Self {
            topic,
            number,
            log,
            incarnation,
            start: None,
            watermark: OffsetWatermark::default(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            queued: false,
            in_flight: HashMap::new(),
            delayed: 0,
            sent_commit: None,
            confirmed: None,
            quiet_since: now,
            searched_to: None,
            stalls: 0,
            delayed_until: None,
            is_retry_topic: false,
            paused: false,
            doubtful: false,
            suspect: false,
            leaving: false,
        }
    }

    pub(crate) fn id(&self) -> TopicPartition {
        (Arc::clone(&self.topic), self.number)
    }

    /// Returns the least offset of the next record, if known.
    pub(crate) fn next(&self) -> Option<u64> {
        self.watermark.next().or(self.start)
    }

    /// Returns the offset to commit, if it is new, or was sent a while ago and never confirmed.
    pub(crate) fn offset_to_commit(&self, now: Instant) -> Option<u64> {
        let offset = self.watermark.committable()?;
        let is_sent = self.sent_commit.is_some_and(|(sent, at)| {
            let is_recent = now.saturating_duration_since(at) < RESEND_COMMIT;
            offset <= sent && (self.confirmed >= Some(sent) || is_recent)
        });
        (!is_sent).then_some(offset)
    }

    /// Adds a record to hand out, before records with larger offsets.
    pub(crate) fn insert_ready(&mut self, record: ReadyRecord) {
        self.ready_bytes += record.message.size();
        let is_later = |own: &ReadyRecord| own.offset > record.offset;
        match self.ready.back().is_some_and(is_later) {
            true => {
                let index = self.ready.partition_point(|own| own.offset <= record.offset);
                self.ready.insert(index, record);
            }
            false => self.ready.push_back(record),
        }
    }

    /// Returns true if ready records count against the buffer. Those of a paused partition do not: they would stop the others.
    pub(crate) fn counts(&self) -> bool {
        !self.paused
    }
}
