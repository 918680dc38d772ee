//! Meanings of the codes of findings about SQS.

use onceward_plugin::FindingDoc;

/// The codes, in alphabetical order.
pub const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "sqs-content-based-deduplication",
        "The queue takes a hash of the body for a missing deduplication id: two messages with the same body within five \
         minutes are one, whatever their keys.",
        "Have producers set deduplication ids, or turn ContentBasedDeduplication off.",
    ),
    FindingDoc::new(
        "sqs-no-redrive-policy",
        "A message without a key is rejected, and a queue without a redrive policy delivers it again for as long as it \
         keeps it.",
        "Give the queue a redrive policy, or write another `on_missing_key` in `[policy]`.",
    ),
    FindingDoc::new(
        "sqs-visibility-short",
        "`visibility` is shorter than the timeout of the handler. While the worker lives, it extends the visibility; \
         the messages of one that is paused or cut off are received by another. They are handled once while the claim \
         of the first worker lives; when its lease has passed, the other takes over.",
        "Raise `visibility`, unless the messages of a dead worker must be redelivered sooner.",
    ),
];
