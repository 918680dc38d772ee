//! One assignment of one partition: what is out with the pipeline, and what may be committed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};
use onceward::Message;

use crate::log_id::Stamp;
use crate::state::watermark::Watermark;

/// When a commit that was not confirmed is sent again.
const REPEAT: Duration = Duration::from_secs(1);

/// One assignment of one partition. Its epoch is in the tags of its deliveries; a later assignment has another one.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    /// The log that its offsets count in, and how positions name it.
    pub(crate) stamp: Stamp,
    pub(crate) incarnation: Arc<str>,
    /// The first offset that is wanted, where that is known.
    pub(crate) start: Option<u64>,
    pub(crate) watermark: Watermark,
    /// What waits to be handed out, by offset, and its bytes.
    pub(crate) ready: VecDeque<Ready>,
    pub(crate) ready_bytes: usize,
    /// It is among those that take turns in handing out.
    pub(crate) queued: bool,
    /// What is out with the pipeline, by the number of its tag.
    pub(crate) held: HashMap<u64, Held>,
    /// How many wait in this process for their next attempt.
    pub(crate) delayed: usize,
    /// What was last sent to be committed and not refused since, and when.
    pub(crate) committed: Option<(u64, Instant)>,
    /// What the broker has confirmed. The client does not report each commit that came to nothing in a rebalance.
    pub(crate) confirmed: Option<u64>,
    /// When a record last came, or the end was last looked at.
    pub(crate) quiet_since: Instant,
    /// The end up to which no more records were found.
    pub(crate) searched: Option<u64>,
    /// How often it was found to deliver nothing although there are records.
    pub(crate) stalls: u32,
    /// Of a retry topic: the copy that was delivered last is to wait until then, and what comes behind it as well.
    pub(crate) waits_until: Option<Instant>,
    /// Copies of records of other topics.
    pub(crate) is_retry: bool,
    /// The pipeline wants nothing of it for a while.
    pub(crate) paused: bool,
    /// Its log is perhaps another one than it was: nothing of it is taken until that is clear.
    pub(crate) doubtful: bool,
    /// Its log was told to end before what was delivered: the overseer looks whether that is so.
    pub(crate) suspect: bool,
    /// It is being revoked: nothing of it is handed out any more.
    pub(crate) leaving: bool,
}

/// A message that waits to be handed out.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) message: Message,
}

/// A message that is out with the pipeline; kept, so that it can be handed out again in place.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) offset: u64,
    pub(crate) message: Message,
    /// A copy of it is on its way to a retry topic.
    pub(crate) copying: bool,
}

impl Assigned {
    pub(crate) fn new(topic: Arc<str>, number: i32, stamp: Stamp, incarnation: Arc<str>) -> Self {
        Self {
            topic,
            number,
            stamp,
            incarnation,
            start: None,
            watermark: Watermark::default(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            queued: false,
            held: HashMap::new(),
            delayed: 0,
            committed: None,
            confirmed: None,
            quiet_since: Instant::now(),
            searched: None,
            stalls: 0,
            waits_until: None,
            is_retry: false,
            paused: false,
            doubtful: false,
            suspect: false,
            leaving: false,
        }
    }

    /// The least offset that the next record can have, where that is known.
    pub(crate) fn next(&self) -> Option<u64> {
        self.watermark.next().or(self.start)
    }

    /// The offset to commit, if that is news, or if it was said a while ago and never confirmed.
    pub(crate) fn to_commit(&self) -> Option<u64> {
        let offset = self.watermark.committable()?;
        let is_said = self.committed.is_some_and(|(said, at)| {
            offset <= said && (self.confirmed >= Some(said) || at.elapsed() < REPEAT)
        });
        (!is_said).then_some(offset)
    }

    /// Adds a message to what waits, before what came after it.
    pub(crate) fn add(&mut self, ready: Ready) {
        self.ready_bytes += ready.message.size();
        let later = |own: &Ready| own.offset > ready.offset;
        match self.ready.back().is_some_and(later) {
            true => {
                let place = self.ready.partition_point(|own| own.offset <= ready.offset);
                self.ready.insert(place, ready);
            }
            false => self.ready.push_back(ready),
        }
    }

    /// True if what waits counts against the buffer. What waits of a paused partition does not: it would stop the others.
    pub(crate) fn counts(&self) -> bool {
        !self.paused
    }
}
