//! Detects partitions that deliver nothing although they have records: [`StallDetector`].

use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::client::context::SharedContext;
use crate::client::native;
use crate::handle::Handle;
use crate::poll::probe::{ProbeResult, RecordProbe};
use crate::state::progress::PartitionProgress;
use crate::state::start::to_client_offset;

/// The timeout of one request. The poll thread waits meanwhile.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// After how long without a record a partition is checked, and the interval between checks.
const QUIET: Duration = Duration::from_secs(1);
/// The delay before the next check after a failed request.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// The result of a stall check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum StallCheck {
    Healthy,
    /// A partition with records delivers nothing, even after a seek.
    Stalled,
}

/// Checks quiet partitions: whether they are at their end, whether only control records are left, and whether the client has
/// stopped fetching one. Used by the poll thread.
pub(super) struct StallDetector<C: ClientContext + 'static> {
    probe: RecordProbe<C>,
    next_check: Instant,
}

impl<C: ClientContext> StallDetector<C> {
    pub(super) fn new(client: &ClientConfig, context: SharedContext<C>) -> Self {
        Self { probe: RecordProbe::new(client, context), next_check: Instant::now() }
    }

    /// Returns true if every assigned partition was delivered to its end; `None` if a request failed.
    pub(super) fn is_at_end<H: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<H>,
        handle: &Handle,
    ) -> Option<bool> {
        for progress in handle.with(|state| state.progress(Instant::now())) {
            let (topic, partition) = (&*progress.topic, progress.partition);
            let (_, end) = consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT).ok()?;
            let from = next_offset(consumer, &progress).ok()?;
            let end = u64::try_from(end).ok()?;
            if from > end {
                handle.with(|state| state.set_suspect(progress.epoch, true));
                return Some(false);
            }
            if from == end {
                continue;
            }
            match self.probe.find_record(topic, partition, from, REQUEST_TIMEOUT).ok()? {
                ProbeResult::Record => return Some(false),
                ProbeResult::NothingUpTo(to) => handle.with(|state| state.skip(progress.epoch, from, to)),
            }
        }
        Some(true)
    }

    /// Checks quiet partitions, if that is due. The watermark skips offsets without records, and a partition that delivers nothing
    /// although it has records is read again.
    pub(super) fn check<H: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<H>,
        handle: &Handle,
    ) -> StallCheck {
        if Instant::now() < self.next_check {
            return StallCheck::Healthy;
        }
        self.next_check = Instant::now() + QUIET;
        let progress = handle.with(|state| state.progress(Instant::now()));
        for progress in progress.into_iter().filter(|own| own.quiet >= QUIET) {
            match self.check_partition(consumer, handle, &progress) {
                Ok(StallCheck::Healthy) => {}
                Ok(StallCheck::Stalled) => return StallCheck::Stalled,
                Err(error) => {
                    let (topic, partition) = (&*progress.topic, progress.partition);
                    tracing::debug!(%error, topic, partition, "checking a quiet partition failed");
                    self.next_check = Instant::now() + RETRY_DELAY;
                    return StallCheck::Healthy;
                }
            }
        }
        StallCheck::Healthy
    }

    fn check_partition<H: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<H>,
        handle: &Handle,
        progress: &PartitionProgress,
    ) -> KafkaResult<StallCheck> {
        let (topic, partition, epoch) = (&*progress.topic, progress.partition, progress.epoch);
        // The client's cached end costs no request, but is stale if the client has stopped fetching.
        let is_overdue = progress.quiet >= handle.topics.stall_timeout;
        let end = match is_overdue {
            true => {
                let (_, end) = consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT)?;
                u64::try_from(end).ok()
            }
            false => native::cached_end(consumer.client(), topic, partition)
                .filter(|end| progress.searched_to != Some(*end)),
        };
        if is_overdue && end.is_some_and(|end| progress.next > Some(end)) {
            handle.with(|state| state.set_suspect(epoch, true));
            return Ok(StallCheck::Healthy);
        }
        let Some(end) = end.filter(|end| progress.next.is_none_or(|next| next < *end)) else {
            if is_overdue {
                handle.with(|state| state.reset_quiet(epoch, Instant::now()));
            }
            return Ok(StallCheck::Healthy);
        };
        let from = next_offset(consumer, progress)?;
        let found = match from < end {
            true => self.probe.find_record(topic, partition, from, REQUEST_TIMEOUT)?,
            false => ProbeResult::NothingUpTo(from),
        };
        match found {
            ProbeResult::NothingUpTo(to) => handle.with(|state| {
                state.skip(epoch, from, to);
                state.set_searched(epoch, end);
                if is_overdue {
                    state.reset_quiet(epoch, Instant::now());
                }
            }),
            ProbeResult::Record if is_overdue => {
                let stalls = handle.with(|state| state.record_stall(epoch, Instant::now()));
                tracing::warn!(topic, partition, from, stalls, "partition stalled; reading it again");
                if stalls > 1 {
                    return Ok(StallCheck::Stalled);
                }
                consumer.seek(topic, partition, to_client_offset(from), REQUEST_TIMEOUT)?;
            }
            // The client is fetching it.
            ProbeResult::Record => {}
        }
        Ok(StallCheck::Healthy)
    }
}

/// Returns the next offset: after the last delivered one, or where the group starts.
fn next_offset<H: ConsumerContext>(
    consumer: &BaseConsumer<H>,
    progress: &PartitionProgress,
) -> KafkaResult<u64> {
    if let Some(next) = progress.next {
        return Ok(next);
    }
    let (topic, partition) = (&*progress.topic, progress.partition);
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let committed = consumer.committed_offsets(list, REQUEST_TIMEOUT)?;
    let committed = committed.find_partition(topic, partition).map(|own| own.offset());
    let start = match committed {
        Some(Offset::Offset(offset)) => offset,
        _ => consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT)?.0,
    };
    Ok(u64::try_from(start).unwrap_or_default())
}
