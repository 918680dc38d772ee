//! Looks after partitions that deliver nothing: whether they are at their end, whether only things that are no records are
//! left, and whether the client has forgotten one. [`Watch`].

use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::client::native;
use crate::poll::probe::{Found, Probe};
use crate::poll::rebalance::Hooked;
use crate::state::Shared;
use crate::state::progress::Place;

/// How long the broker may take to answer one question. The poll thread waits meanwhile.
const ANSWER: Duration = Duration::from_secs(2);
/// After how long without a record a partition is looked at, and how often.
const QUIET: Duration = Duration::from_secs(1);
/// How long nobody is asked after a question without an answer.
const BREATH: Duration = Duration::from_secs(5);

/// Whether the client can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Verdict {
    /// It can.
    Well,
    /// It delivers nothing of a partition that has records, even after it was told to read there.
    Stalled,
}

/// Looks after partitions that deliver nothing. It belongs to the poll thread.
pub(crate) struct Watch<C: ClientContext + 'static> {
    probe: Probe<C>,
    next_look: Instant,
}

impl<C: ClientContext> Watch<C> {
    pub(crate) fn new(probe: Probe<C>) -> Self {
        Self { probe, next_look: Instant::now() }
    }

    /// True if each assigned partition was delivered to its end; `None` if the broker does not tell.
    pub(crate) fn is_at_end(&mut self, consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) -> Option<bool> {
        for place in shared.places() {
            let (_, end) = consumer.fetch_watermarks(&place.topic, place.partition, ANSWER).ok()?;
            let from = from(consumer, &place).ok()?;
            let end = u64::try_from(end).ok()?;
            if from > end {
                shared.suspect(place.epoch, true);
                return Some(false);
            }
            if from == end {
                continue;
            }
            match self.probe.look(&place.topic, place.partition, from, ANSWER).ok()? {
                Found::Record => return Some(false),
                Found::NothingUpTo(to) => shared.passed(&place, from, to),
            }
        }
        Some(true)
    }

    /// Lets the watermark pass what holds no records, and wakes a partition that delivers nothing although it has some.
    pub(crate) fn look(&mut self, consumer: &BaseConsumer<Hooked<C>>, shared: &Shared) -> Verdict {
        if Instant::now() < self.next_look {
            return Verdict::Well;
        }
        self.next_look = Instant::now() + QUIET;
        for place in shared.places().into_iter().filter(|place| place.quiet >= QUIET) {
            match self.look_at(consumer, shared, &place) {
                Ok(Verdict::Well) => {}
                Ok(Verdict::Stalled) => return Verdict::Stalled,
                Err(error) => {
                    tracing::debug!(%error, topic = &*place.topic, place.partition, "a quiet partition cannot be looked at");
                    self.next_look = Instant::now() + BREATH;
                    return Verdict::Well;
                }
            }
        }
        Verdict::Well
    }

    fn look_at(
        &mut self,
        consumer: &BaseConsumer<Hooked<C>>,
        shared: &Shared,
        place: &Place,
    ) -> KafkaResult<Verdict> {
        // What the client knows costs nothing, and is wrong if it is the client that sleeps.
        let is_overdue = place.quiet >= shared.topics.stall_timeout;
        let end = match is_overdue {
            true => {
                let (_, end) = consumer.fetch_watermarks(&place.topic, place.partition, ANSWER)?;
                u64::try_from(end).ok()
            }
            false => native::known_end(consumer.client(), &place.topic, place.partition)
                .filter(|end| place.searched != Some(*end)),
        };
        if is_overdue && end.is_some_and(|end| place.next > Some(end)) {
            shared.suspect(place.epoch, true);
            return Ok(Verdict::Well);
        }
        let Some(end) = end.filter(|end| place.next.is_none_or(|next| next < *end)) else {
            if is_overdue {
                shared.rested(place);
            }
            return Ok(Verdict::Well);
        };
        let from = from(consumer, place)?;
        let found = match from < end {
            true => self.probe.look(&place.topic, place.partition, from, ANSWER)?,
            false => Found::NothingUpTo(from),
        };
        match found {
            Found::NothingUpTo(to) => {
                shared.passed(place, from, to);
                shared.searched(place, end);
                if is_overdue {
                    shared.rested(place);
                }
            }
            Found::Record if is_overdue => {
                let stalls = shared.stalled(place);
                tracing::warn!(
                    topic = &*place.topic,
                    place.partition,
                    from,
                    stalls,
                    "a partition has records and delivers none; it is read again from there"
                );
                if stalls > 1 {
                    return Ok(Verdict::Stalled);
                }
                let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
                consumer.seek(&place.topic, place.partition, offset, ANSWER)?;
            }
            // On its way.
            Found::Record => {}
        }
        Ok(Verdict::Well)
    }
}

/// The offset that comes next: behind the last delivered one, or where the group starts.
fn from<C: ClientContext>(consumer: &BaseConsumer<Hooked<C>>, place: &Place) -> KafkaResult<u64> {
    if let Some(next) = place.next {
        return Ok(next);
    }
    let mut list = TopicPartitionList::new();
    list.add_partition(&place.topic, place.partition);
    let committed = consumer.committed_offsets(list, ANSWER)?;
    let committed = committed.find_partition(&place.topic, place.partition).map(|own| own.offset());
    let start = match committed {
        Some(Offset::Offset(offset)) => offset,
        _ => consumer.fetch_watermarks(&place.topic, place.partition, ANSWER)?.0,
    };
    Ok(u64::try_from(start).unwrap_or_default())
}
