//! What a handler shows to the store in order to complete its claim itself.

use onceward::Message;
use onceward::store::Lease;

/// The [token](Lease::to_token) of the message's claim; `None` without a claim.
pub(super) fn claim_token(message: &Message) -> Option<String> {
    let lease = Lease { key: message.key()?, owner: message.owner_token()?, fence: message.fence() };
    Some(lease.to_token())
}
