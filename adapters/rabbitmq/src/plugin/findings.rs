//! Meanings of the codes of findings about RabbitMQ.

use onceward_plugin::FindingDoc;

/// The codes, in alphabetical order.
pub const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "rabbitmq-message-id-absent",
        "The key is the message id, by default, and RabbitMQ gives no message an id: one whose producer sets none has \
         no key, and is dead-lettered.",
        "Have producers set the id, or write `from` in `[key]`: a header or a JSON field.",
    ),
    FindingDoc::new(
        "rabbitmq-prefetch-deep",
        "The last message of a full `prefetch` waits longer than `ack_timeout` if all handlers take as long as they \
         may.",
        "Lower `prefetch`, raise `concurrency`, or raise `consumer_timeout` and write its value as `ack_timeout`.",
    ),
    FindingDoc::new(
        "rabbitmq-prefetch-low",
        "`prefetch` is less than `pipeline.concurrency`, so that fewer handlers run at once than may.",
        "Raise `prefetch` or lower `concurrency`.",
    ),
    FindingDoc::new(
        "rabbitmq-retries-beyond-ack-timeout",
        "Messages that wait for a retry in this process are requeued before the `ack_timeout` ends, and delivered \
         again, which a quorum queue counts towards its delivery limit.",
        "Write `wait_queues_from`, so that they wait in the broker; or raise `consumer_timeout` and write its value as \
         `ack_timeout`.",
    ),
];
