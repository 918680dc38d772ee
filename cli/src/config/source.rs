//! `[source.*]`: where messages come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::address::Address;
use super::bytes::ByteCount;
use super::duration::HumanDuration;
use super::table::{choice, count, secs, table};

/// Where messages come from: exactly one of these tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A RabbitMQ queue.
    Rabbitmq(RabbitmqSource),
    /// Kafka topics, read as a consumer group.
    Kafka(KafkaSource),
    /// An SQS queue.
    Sqs(SqsSource),
    /// A file of lines, or standard input.
    File(FileSource),
}

impl Source {
    /// The name of the table: `rabbitmq`, `kafka`, `sqs` or `file`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rabbitmq(_) => "rabbitmq",
            Self::Kafka(_) => "kafka",
            Self::Sqs(_) => "sqs",
            Self::File(_) => "file",
        }
    }

    /// True where the source gives messages a key of its own to keep order by: Kafka's record key, SQS's group id.
    pub fn has_record_keys(&self) -> bool {
        match self {
            Self::Kafka(_) | Self::Sqs(_) => true,
            Self::Rabbitmq(_) | Self::File(_) => false,
        }
    }
}

table! {
    /// A RabbitMQ queue.
    RabbitmqSource [rabbitmq] {
        /// The queue to consume. It must exist.
        pub queue: String,
        /// How many unacknowledged messages the broker may have with us, from 1 to 65535. When left out: four times
        /// `pipeline.concurrency` and 16 at least, so that other workers get messages too. Messages that wait in this process for
        /// their next attempt count as well.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub prefetch: Option<u32>,
        /// True for a queue with `x-single-active-consumer`, which keeps its order across workers.
        #[serde(default)]
        pub single_active_consumer: bool,
        /// The broker's `consumer_timeout`: after it, the broker takes back what was not acknowledged and closes the
        /// channel. `0s` where it was turned off.
        #[serde(default = "secs::<1_800>")]
        pub ack_timeout: HumanDuration,
        /// The queue's `x-delivery-limit`, where it has one; quorum queues have 20 since RabbitMQ 4.0. Beyond it the broker drops
        /// a message, unless the queue has a dead-letter exchange.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub delivery_limit: Option<u32>,
        /// Retries at least this far off, from 1s to 1d, wait in queues of the broker's, named `QUEUE.wait.…` and declared
        /// when needed, instead of in this process. They lose their place in the order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub wait_queues_from: Option<HumanDuration>,
    }
}

table! {
    /// Kafka topics, read as a consumer group.
    KafkaSource [kafka] {
        /// The topics to consume.
        pub topics: Vec<String>,
        /// The consumer group.
        pub group: String,
        /// Topics in which messages wait for their next attempt, each with the shortest delay it is for, from 1s to 7d: such as
        /// `{ "orders.retry.1m" = "1m" }`. They must exist. Shorter delays are spent in this process. Needs
        /// `pipeline.ordering = "none"`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub retry_topics: BTreeMap<String, HumanDuration>,
    }
}

table! {
    /// An SQS queue. Credentials come from the standard AWS chain.
    SqsSource [sqs] {
        /// The queue's URL. One that ends in `.fifo` is a FIFO queue.
        pub queue_url: Address,
        /// How many long polls run at a time, from 1 to 64.
        #[serde(default = "count::<4>")]
        pub pollers: u32,
        /// For how long a received message stays ours without a word, from 1s to 12h in whole seconds. It is extended as
        /// long as the message is held, so it bounds only how long a dead worker's messages wait.
        #[serde(default = "secs::<30>")]
        pub visibility: HumanDuration,
        /// True takes the message out of the envelope that SNS puts around it; one without an envelope is malformed then.
        #[serde(default)]
        pub unwrap_sns: bool,
    }
}

impl RabbitmqSource {
    /// The prefetch in effect with handlers for so many messages at a time.
    pub fn prefetch(&self, concurrency: u32) -> u32 {
        self.prefetch.unwrap_or_else(|| concurrency.saturating_mul(4).clamp(16, 65_535))
    }
}

impl SqsSource {
    /// True for a FIFO queue, which keeps order within each message group.
    pub fn is_fifo(&self) -> bool {
        self.queue_url.expose().ends_with(".fifo")
    }
}

table! {
    /// A file of lines, or standard input.
    FileSource [] {
        /// The file, or `-` for standard input, which keeps no offset. A relative path starts from the directory of the
        /// configuration file.
        pub path: PathBuf,
        /// What a line is.
        #[serde(default)]
        pub format: FileFormat,
        /// Waits for more lines at the end of the file instead of finishing.
        #[serde(default)]
        pub follow: bool,
        /// The longest line taken as a message; a longer one is poison and is set aside. From 1 byte to 1GiB.
        #[serde(default = "default_max_message_bytes")]
        pub max_message_bytes: ByteCount,
    }
}

impl FileSource {
    /// True for standard input, which cannot be read again and so keeps no offset.
    pub fn is_standard_input(&self) -> bool {
        self.path == Path::new("-")
    }
}

const fn default_max_message_bytes() -> ByteCount {
    ByteCount::mib(64)
}

choice! {
    /// What a line of a file is.
    FileFormat {
        /// The payload itself; there are no headers and no message id.
        #[default]
        Raw,
        /// A JSON object `{"id", "headers", "payload"}`.
        Envelope,
    }
}
