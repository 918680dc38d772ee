//! Meanings of the codes of findings about Kafka.

use onceward_plugin::FindingDoc;

/// The codes, in alphabetical order.
pub const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "kafka-assignment-strategy",
        "The members of the group use another `partition.assignment.strategy`, so that this one cannot join.",
        "Set the same in `[source.kafka.properties]`, or stop the other members first.",
    ),
    FindingDoc::new(
        "kafka-order-by-value",
        "The order is kept by a value that is not the record key. Records with the same value can be in several \
         partitions, which several workers read.",
        "Write `order_by = \"broker\"`, or have producers partition by that value.",
    ),
    FindingDoc::new(
        "kafka-retention-unlimited",
        "Records are kept without a limit, or the limit is not readable. A record that is read again after the `ttl` of \
         its key is handled again.",
        "Grant DescribeConfigs on the topics; or limit the retention; or do not reset offsets to before the `ttl`.",
    ),
    FindingDoc::new(
        "kafka-topic-too-small",
        "A retry topic or the dead-letter topic takes smaller records than the source.",
        "Raise `max.message.bytes` of the topic that the message names.",
    ),
    FindingDoc::new(
        "kafka-topics-not-readable",
        "The user may not read a topic.",
        "Grant Read on the topic and the group.",
    ),
];
