//! A message under a claim, as a handler receives it.

use std::time::Duration;

use onceward::store::{Claimed, Lease, OwnerToken};
use onceward::{Key, Message, MessageBuilder, Scope, TestRun};

pub(crate) const KEY: &str = "000102030405060708090a0b0c0d0e0f";
pub(crate) const FENCE: u64 = 1_763_718_843_000_001;

pub(crate) fn scope() -> Scope {
    Scope::parse("billing").unwrap()
}

/// The message as a handler receives it in the second attempt of generation 3.
pub(crate) fn claimed(message: MessageBuilder) -> (TestRun, Message) {
    let owner = OwnerToken::from_bytes([7; 16]);
    let lease = Lease { key: Key::from_hex(KEY).unwrap(), owner, fence: FENCE };
    let lease_left = Duration::from_secs(30);
    TestRun::start(&message.build(), &Claimed { lease, attempt: 2, lost: 0, generation: 3, lease_left })
}
