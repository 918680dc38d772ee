//! Facts of Pub/Sub about a delivery, as headers of the message.

use onceward::own_headers::passes_for;

/// The id that Pub/Sub assigned.
pub(crate) const MESSAGE_ID: &str = "pubsub-message-id";
/// When Pub/Sub received it, RFC 3339 in UTC.
pub(crate) const PUBLISH_TIME: &str = "pubsub-publish-time";
/// The ordering key.
pub(crate) const ORDERING_KEY: &str = "pubsub-ordering-key";
/// Which delivery this is, from 1; only with a dead-letter policy, whose count it is.
pub(crate) const DELIVERY_ATTEMPT: &str = "pubsub-delivery-attempt";

const PREFIX: &str = "pubsub-";

/// True for a header that is a fact, or imitates one. Facts describe one delivery and are not sent on; a producer's
/// header that imitates one is dropped.
pub(crate) fn is_fact(name: &str) -> bool {
    passes_for(name, PREFIX)
}
