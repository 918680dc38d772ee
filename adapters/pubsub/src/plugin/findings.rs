//! Meanings of the codes of findings about Pub/Sub.

use onceward_plugin::FindingDoc;

/// The codes, in alphabetical order.
pub const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "pubsub-acked-messages-retained",
        "The subscription keeps acked messages. A seek delivers them again, and those whose keys have expired are \
         handled again.",
        "Keep `ttl` above the retention, or do not seek back further than it.",
    ),
    FindingDoc::new(
        "pubsub-attributes-unreadable",
        "The attributes of the subscription cannot be read, so that ordering, retention and the dead-letter policy are \
         not checked. Emulators lack some of them.",
        "Grant `pubsub.subscriptions.get`.",
    ),
    FindingDoc::new(
        "pubsub-detached",
        "The subscription is detached from its topic, or cannot deliver.",
        "Create the subscription again.",
    ),
    FindingDoc::new(
        "pubsub-no-dead-letter-policy",
        "A message without a key is rejected, and a subscription without a dead-letter policy delivers it again for as \
         long as it keeps it.",
        "Give the subscription a dead-letter policy, or write another `on_missing_key` in `[policy]`.",
    ),
    FindingDoc::new(
        "pubsub-not-ordered",
        "`ordered` is set, and the subscription keeps no order.",
        "Use a subscription with message ordering, or remove `ordered`.",
    ),
    FindingDoc::new(
        "pubsub-not-pull",
        "The subscription delivers by push, or exports.",
        "Use a subscription that delivers by pull.",
    ),
    FindingDoc::new(
        "pubsub-order-not-kept",
        "The subscription keeps the order of its ordering keys and the pipeline does not: messages of one key run at \
         the same time.",
        "Set `ordered`, or ignore this if the order does not matter.",
    ),
    FindingDoc::new(
        "pubsub-permission-missing",
        "The user lacks a permission on the subscription or a topic.",
        "Grant the role that the message names.",
    ),
    FindingDoc::new(
        "pubsub-topic-deleted",
        "The topic of the subscription was deleted. No new messages arrive.",
        "Create the subscription again, on a topic that exists.",
    ),
];
