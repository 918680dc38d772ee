//! The consuming client of a transform, and the conversion of its records.

use std::sync::Arc;

use onceward::OwnHeaders;
use onceward_kafka::internal::to_message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message as _};

use crate::transform::assignment::TransformAssignment;
use crate::transform::batch::{BatchRecord, Produced};

pub(super) type SourceClient = BaseConsumer<TransformAssignment>;

pub(super) fn to_batch_record(
    source: &SourceClient,
    cluster: &str,
    record: &BorrowedMessage<'_>,
) -> Option<BatchRecord> {
    let (topic, partition) = (record.topic(), record.partition());
    let epoch = source.context().epoch(topic, partition)?;
    let incarnation = source.context().log_id(topic, partition).incarnation(cluster, topic).into();
    let topic: Arc<str> = topic.into();
    let (message, _) = to_message(record, &topic, &incarnation, None, &OwnHeaders::default());
    Some(BatchRecord { topic, partition, offset: record.offset(), epoch, message })
}

pub(super) fn is_assigned(source: &SourceClient, own: &BatchRecord) -> bool {
    source.context().epoch(&own.topic, own.partition) == Some(own.epoch)
}

/// Drops the records of partitions that were revoked while they were transformed.
pub(super) fn drop_revoked(
    source: &SourceClient,
    batch: &mut Vec<BatchRecord>,
    produced: &mut Vec<Produced>,
) {
    let assigned: Vec<_> = batch.iter().map(|own| is_assigned(source, own)).collect();
    let (mut of_batch, mut of_produced) = (assigned.iter().copied(), assigned.iter().copied());
    batch.retain(|_| of_batch.next().unwrap_or_default());
    produced.retain(|_| of_produced.next().unwrap_or_default());
}

/// Pauses or resumes all partitions. Returns false if the client refuses.
pub(super) fn set_paused(source: &SourceClient, pause: bool) -> bool {
    let changed = source.assignment().and_then(|assignment| match pause {
        true => source.pause(&assignment),
        false => source.resume(&assignment),
    });
    if let Err(error) = &changed {
        tracing::warn!(%error, pause, "pausing or resuming partitions failed; retrying");
    }
    changed.is_ok()
}
