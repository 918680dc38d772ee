//! Advice of `onceward check` about a subscription.

use onceward::pipeline::config::{OnMissingKey, Ordering};
use onceward::pipeline::start_check;
use onceward::store::Advice;
use onceward_plugin::Context;

use crate::inspect::NOT_ORDERED;
use crate::{PubsubSubscriptionConfig, PubsubSubscriptionStatus};

/// Compares a subscription with the configuration.
pub(super) fn of(
    context: &Context<'_>,
    config: &PubsubSubscriptionConfig,
    status: &PubsubSubscriptionStatus,
) -> Vec<Advice> {
    let mut found = vec![Advice::ok(status.to_string())];
    if !status.is_known() {
        let text = "the attributes of the subscription could not be read (a missing permission pubsub.subscriptions.get, or an \
                    emulator), so that ordering, retention and dead-letter policy are not checked";
        found.push(Advice::warning("pubsub-attributes-unreadable", text));
        return found;
    }
    found.extend(start_check::advise(context.pipeline, &status.capabilities(config)));
    found.extend(delivery(config, status));
    found.extend(order(context, config, status));
    let rejects = context.pipeline.policies.on_missing_key == OnMissingKey::Reject;
    if status.max_delivery_attempts.is_none() && rejects {
        found.push(Advice::warning("pubsub-no-dead-letter-policy", "the subscription has no dead-letter policy, so a message that is rejected because it has no key is redelivered for \
             as long as it is kept; give the subscription one, or write another on_missing_key in [policy]",
        ));
    }
    if status.retains_acked {
        found.push(Advice::warning("pubsub-acked-messages-retained", "the subscription keeps acked messages: a seek delivers them again, and those whose keys have expired from the store \
             are handled again; keep ttl above the retention",
        ));
    }
    found
}

/// What keeps messages from being delivered.
fn delivery(config: &PubsubSubscriptionConfig, status: &PubsubSubscriptionStatus) -> Vec<Advice> {
    let mut found = Vec::new();
    if !status.pull {
        found.push(Advice::error("pubsub-not-pull", "the subscription delivers by push or export, so that nothing can be received from it; use one that delivers by pull",
        ));
    }
    if !status.active {
        found.push(Advice::error(
            "pubsub-detached",
            "the subscription is detached or cannot deliver; create it again",
        ));
    }
    if status.topic.is_none() {
        found.push(Advice::warning(
            "pubsub-topic-deleted",
            "the topic of the subscription was deleted, so that no new messages arrive",
        ));
    }
    if status.check_order(config.ordered).is_err() {
        found.push(Advice::error("pubsub-not-ordered", NOT_ORDERED));
    }
    found
}

fn order(
    context: &Context<'_>,
    config: &PubsubSubscriptionConfig,
    status: &PubsubSubscriptionStatus,
) -> Option<Advice> {
    let is_lost = status.ordered && !config.ordered && context.pipeline.ordering == Ordering::None;
    is_lost.then(|| {
        Advice::warning("pubsub-order-not-kept", "the subscription keeps the order of its ordering keys, and the pipeline does not: messages of one key run at the \
             same time; set ordered, or ignore this if order does not matter",
        )
    })
}
