//! Flow control of single partitions: [`PartitionFlow`].

use std::sync::Arc;

use onceward::adapter::FlowControl;

use crate::handle::Handle;

/// The flow control of a [`KafkaConsumer`](crate::KafkaConsumer). The poll thread pauses the partition in the client within one
/// poll, so that nothing more of it is fetched.
pub(crate) struct PartitionFlow(pub(crate) Arc<Handle>);

impl FlowControl for PartitionFlow {
    fn pause(&self, epoch: u64) {
        self.0.with(|state| state.set_paused(epoch, true));
    }

    fn resume(&self, epoch: u64) {
        self.0.with(|state| state.set_paused(epoch, false));
    }
}
