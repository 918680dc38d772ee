//! Restarts partitions whose log was replaced, and seeks their start offsets.

use std::time::{Duration, Instant};

use onceward::Error;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::handle::Handle;
use crate::log_change::{LogChange, LogObservation, truncation_error};
use crate::poll::rebalance::RebalanceContext;
use crate::state::start::PartitionStart;

/// The timeout of a seek. The poll thread waits meanwhile; a failed seek is retried.
const SEEK_TIMEOUT: Duration = Duration::from_millis(500);

/// Applies the monitor's observations and the scheduled seeks. Returns false if the consumer must stop; the error is reported.
pub(super) fn apply<C: ClientContext>(consumer: &BaseConsumer<RebalanceContext<C>>, handle: &Handle) -> bool {
    for observation in handle.with(|state| state.take_observations()) {
        if let Err(error) = restart(consumer, handle, &observation) {
            handle.report(error);
            return false;
        }
    }
    for (epoch, (topic, partition), offset) in handle.with(|state| state.take_seeks()) {
        match consumer.seek(&topic, partition, offset, SEEK_TIMEOUT) {
            Ok(()) => handle.with(|state| state.seek_done(epoch)),
            Err(error) => {
                tracing::debug!(%error, topic = &*topic, partition, "seeking a partition failed; retrying");
                handle.with(|state| state.seek_failed(epoch, offset));
            }
        }
    }
    true
}

fn restart<C: ClientContext>(
    consumer: &BaseConsumer<RebalanceContext<C>>,
    handle: &Handle,
    observation: &LogObservation,
) -> Result<(), Error> {
    let Some(replacement) = handle.with(|state| state.replacement(observation)) else { return Ok(()) };
    let PartitionStart { topic, partition, log, .. } = &replacement.start;
    handle.health.reset();
    tracing::warn!(
        topic = &**topic,
        partition,
        delivered_to = replacement.delivered_to,
        log_start = observation.log_start,
        log_end = observation.log_end,
        "{}; reading the log from its start, without committing records of the old one",
        replacement.change.description()
    );
    let mut from = observation.log_start;
    if let Some(stored) = &consumer.context().stored {
        if replacement.change == LogChange::Truncated {
            return Err(truncation_error(topic, *partition));
        }
        let incarnation = log.incarnation(&handle.cluster, topic).into();
        let number = u32::try_from(*partition).unwrap_or_default();
        from = stored.start_offset(&incarnation, number, observation.log_end)?.unwrap_or(from).max(from);
    }
    let start = PartitionStart { from: Some(from), ..replacement.start };
    handle.with(|state| state.restart(observation.epoch, &start, Instant::now()));
    Ok(())
}
