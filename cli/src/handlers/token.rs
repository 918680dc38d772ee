//! What a handler shows to the store in order to complete its claim itself.

use onceward::Message;

/// Key, owner token and fence of the message's claim in 80 hexadecimal digits; `None` without a claim. With a Postgres
/// store, `SELECT onceward.complete(token)` takes it. A capability: never to be logged.
pub(super) fn claim_token(message: &Message) -> Option<String> {
    let (key, owner) = (message.key()?, message.owner_token()?);
    Some(format!("{key}{}{:016x}", owner.to_hex(), message.fence()))
}
