//! Checks, outside the group, whether a record exists at or after an offset, or only control records and gaps: [`RecordProbe`].

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;

use crate::auth::password::PasswordRefresh;
use crate::client::connectivity::wait_for_cluster;
use crate::client::context::SharedContext;
use crate::state::start::to_client_offset;

/// The result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeResult {
    /// A record exists at the offset or after it.
    Record,
    /// No record exists up to this offset: only control records, aborted or compacted records, or the end.
    NothingUpTo(u64),
}

/// A separate client that reads a partition from an offset, without joining the group or committing.
///
/// librdkafka only delivers records. If a partition ends with control records, the member's position never reaches the end, and
/// the group's lag stays above 0.
pub(super) struct RecordProbe<C: ClientContext + 'static> {
    client: ClientConfig,
    context: SharedContext<C>,
    consumer: Option<BaseConsumer<SharedContext<C>>>,
    password_refresh: PasswordRefresh,
}

impl<C: ClientContext> RecordProbe<C> {
    /// Creates a probe with the configuration of the member. It connects when it is first used.
    pub(super) fn new(client: &ClientConfig, context: SharedContext<C>) -> Self {
        let mut client = client.clone();
        for (name, value) in [
            ("enable.partition.eof", "true"),
            // An empty fetch must return at once.
            ("fetch.wait.max.ms", "10"),
            ("auto.offset.reset", "earliest"),
        ] {
            client.set(name, value);
        }
        client.remove("group.instance.id");
        // The result is compared with the leader's end; a nearer replica may lag behind.
        client.remove("client.rack");
        let password_refresh = context.password_refresh();
        Self { client, context, consumer: None, password_refresh }
    }

    /// Looks for a record at `from` or after it. Blocks up to `limit`.
    ///
    /// # Errors
    /// The broker does not answer in time, or denies access.
    pub(super) fn find_record(
        &mut self,
        topic: &str,
        partition: i32,
        from: u64,
        limit: Duration,
    ) -> KafkaResult<ProbeResult> {
        let until = Instant::now() + limit;
        let consumer = match &mut self.consumer {
            Some(consumer) => consumer,
            none => {
                let consumer = self.client.create_with_context(self.context.clone())?;
                wait_for_cluster(&consumer, topic, limit)?;
                none.insert(consumer)
            }
        };
        self.password_refresh.run_if_due(consumer.client());
        // Fetched before reading: records may be appended meanwhile.
        let (_, end) = consumer.fetch_watermarks(topic, partition, limit)?;
        let end = u64::try_from(end).unwrap_or_default();
        if end <= from {
            return Ok(ProbeResult::NothingUpTo(from));
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, to_client_offset(from))?;
        consumer.assign(&assignment)?;
        let found = loop {
            match consumer.poll(until.saturating_duration_since(Instant::now())) {
                Some(Ok(record)) if record.topic() == topic && record.partition() == partition => {
                    break Ok(ProbeResult::Record);
                }
                Some(Err(KafkaError::PartitionEOF(number))) if number == partition => {
                    break Ok(ProbeResult::NothingUpTo(end));
                }
                Some(Err(error)) if Instant::now() >= until => break Err(error),
                Some(_) => {}
                None => {
                    break Err(KafkaError::MessageConsumption(
                        rdkafka::error::RDKafkaErrorCode::OperationTimedOut,
                    ));
                }
            }
        };
        consumer.unassign()?;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::log::TracingContext;

    /// A replica's end would be taken for that of the log, and the records between as absent.
    #[test]
    fn it_reads_from_the_leader_even_if_a_replica_is_nearer() {
        let mut client = ClientConfig::new();
        client.set("client.rack", "rack-1").set("group.instance.id", "one").set("group.id", "billing");
        let probe = RecordProbe::new(&client, SharedContext::new(TracingContext));
        let [rack, instance] = ["client.rack", "group.instance.id"].map(|name| probe.client.get(name));
        assert_eq!((rack, instance), (None, None));
    }
}
