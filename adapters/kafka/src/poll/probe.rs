//! Looks what stands at a place of a partition, beside the group: a record, or only what no consumer is given. [`Probe`].

use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::auth::password::Renewal;
use crate::client::connectivity::reach;
use crate::poll::rebalance::Users;

/// What stands at a place of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A record, at this place or behind it.
    Record,
    /// No record up to this offset: the end, markers of transactions, aborted or compacted records.
    NothingUpTo(u64),
}

/// A client of its own that reads a partition from a given place on, without joining the group or committing.
///
/// librdkafka tells a member only of records. Where the last things in a partition are none, its position never reaches the
/// end, and the group's lag stays above 0.
pub(crate) struct Probe<C: ClientContext + 'static> {
    client: ClientConfig,
    context: Users<C>,
    consumer: Option<BaseConsumer<Users<C>>>,
    renewal: Renewal,
}

impl<C: ClientContext> Probe<C> {
    /// Connects when it is first asked. `client` is the configuration of the member.
    pub(crate) fn new(client: &ClientConfig, context: Users<C>) -> Self {
        let mut client = client.clone();
        for (name, value) in [
            ("enable.partition.eof", "true"),
            // It wants to know, not to wait.
            ("fetch.wait.max.ms", "10"),
            ("auto.offset.reset", "earliest"),
        ] {
            client.set(name, value);
        }
        client.remove("group.instance.id");
        // It compares with the leader's end: a replica that is nearer may end before.
        client.remove("client.rack");
        let renewal = context.renewal();
        Self { client, context, consumer: None, renewal }
    }

    /// What stands at `from`. Blocks up to `limit`.
    ///
    /// # Errors
    /// The broker does not answer in time, or refuses.
    pub(crate) fn look(
        &mut self,
        topic: &str,
        partition: i32,
        from: u64,
        limit: Duration,
    ) -> KafkaResult<Found> {
        let until = Instant::now() + limit;
        let consumer = match &mut self.consumer {
            Some(consumer) => consumer,
            none => {
                let consumer = self.client.create_with_context(self.context.clone())?;
                reach(&consumer, topic, limit)?;
                none.insert(consumer)
            }
        };
        self.renewal.look(consumer.client());
        // Before it is read: what comes later may hold records.
        let (_, end) = consumer.fetch_watermarks(topic, partition, limit)?;
        let end = u64::try_from(end).unwrap_or_default();
        if end <= from {
            return Ok(Found::NothingUpTo(from));
        }
        let mut place = TopicPartitionList::new();
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        place.add_partition_offset(topic, partition, offset)?;
        consumer.assign(&place)?;
        let found = loop {
            match consumer.poll(until.saturating_duration_since(Instant::now())) {
                Some(Ok(record)) if record.topic() == topic && record.partition() == partition => {
                    break Ok(Found::Record);
                }
                Some(Err(KafkaError::PartitionEOF(number))) if number == partition => {
                    break Ok(Found::NothingUpTo(end));
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
    use crate::client::log::Traced;

    /// A replica's end would pass for that of the log, and what lies between for no records.
    #[test]
    fn it_reads_from_the_leader_whatever_is_nearer() {
        let mut client = ClientConfig::new();
        client.set("client.rack", "rack-1").set("group.instance.id", "one").set("group.id", "billing");
        let probe = Probe::new(&client, Users::new(Traced));
        let [rack, instance] = ["client.rack", "group.instance.id"].map(|name| probe.client.get(name));
        assert_eq!((rack, instance), (None, None));
    }
}
