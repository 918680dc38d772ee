//! One assignment of one partition: what is out with the pipeline, and what may be committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};
use onceward::Message;

use crate::watermark::Watermark;

/// When a commit that was not confirmed is sent again.
const REPEAT: Duration = Duration::from_secs(1);

/// One assignment of one partition. Its epoch is in the tags of its deliveries; a later assignment has another one.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    pub(crate) incarnation: Arc<str>,
    pub(crate) watermark: Watermark,
    /// What is out with the pipeline, by the number of its tag.
    pub(crate) held: HashMap<u64, Held>,
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
    /// It is being taken away: nothing of it is handed out any more.
    pub(crate) leaving: bool,
}

/// A message that is out with the pipeline; kept, so that it can be handed out again in place.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) offset: u64,
    pub(crate) message: Message,
}

impl Assigned {
    pub(crate) fn new(topic: Arc<str>, number: i32, incarnation: Arc<str>) -> Self {
        Self {
            topic,
            number,
            incarnation,
            watermark: Watermark::default(),
            held: HashMap::new(),
            committed: None,
            confirmed: None,
            quiet_since: Instant::now(),
            searched: None,
            stalls: 0,
            waits_until: None,
            is_retry: false,
            leaving: false,
        }
    }

    /// The offset to commit, if that is news, or if it was said a while ago and never confirmed.
    pub(crate) fn to_commit(&self) -> Option<u64> {
        let offset = self.watermark.committable()?;
        let is_said = self.committed.is_some_and(|(said, at)| {
            offset <= said && (self.confirmed >= Some(said) || at.elapsed() < REPEAT)
        });
        (!is_said).then_some(offset)
    }
}
