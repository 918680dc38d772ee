//! Sends commits of offsets.

use std::time::Instant;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::client::native;
use crate::handle::Handle;
use crate::start_offsets::set_metadata;
use crate::state::commits::OffsetCommit;
use crate::state::start::to_client_offset;

/// Commits offsets, if there are any. The next commit sends failed ones again.
pub(super) fn send_commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    handle: &Handle,
    offsets: &[OffsetCommit],
    mode: CommitMode,
) {
    if offsets.is_empty() {
        return;
    }
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for OffsetCommit { topic, partition, offset, metadata } in offsets {
        if let Err(error) = list.add_partition_offset(topic, *partition, to_client_offset(*offset)) {
            tracing::error!(%error, topic = &**topic, partition, "invalid offset not committed");
        }
        set_metadata(&mut list, topic, *partition, metadata);
    }
    let sent = match mode {
        CommitMode::Async => {
            handle.with(|state| state.set_commit_sent(Some(Instant::now())));
            native::commit_async(consumer.client(), &list)
                .inspect_err(|_| handle.with(|state| state.set_commit_sent(None)))
        }
        CommitMode::Sync => consumer.commit(&list, mode),
    };
    match sent {
        Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
        Err(error) => {
            tracing::warn!(%error, "offset commit failed; records may be redelivered");
            let failed = offsets.iter().map(|own| (&*own.topic, own.partition));
            handle.with(|state| state.commit_failed(failed));
        }
    }
}
