//! Claim token, with which a handler can complete its claim in the store.

use onceward::Message;
use onceward::store::Lease;

/// The [token](Lease::to_token) of the claim of `message`; `None` without a claim.
pub(super) fn claim_token(message: &Message) -> Option<String> {
    let lease = Lease { key: message.key()?, owner: message.owner_token()?, fence: message.fence() };
    Some(lease.to_token())
}
