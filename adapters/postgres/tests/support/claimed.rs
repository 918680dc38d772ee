//! A message under a claim, as a handler receives it. The tests of all handlers share this file.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses a part")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use onceward::store::{Claimed, Lease, OwnerToken};
use onceward::{Key, Message, MessageBuilder, Scope, TestRun};

pub const KEY: &str = "000102030405060708090a0b0c0d0e0f";
pub const FENCE: u64 = 1_763_718_843_000_001;

pub fn scope() -> Scope {
    Scope::parse("billing").unwrap()
}

/// The message as a handler receives it in the second attempt of generation 3.
pub fn claimed(message: MessageBuilder) -> (TestRun, Message) {
    let owner = OwnerToken::from_bytes([7; 16]);
    let lease = Lease { key: Key::from_hex(KEY).unwrap(), owner, fence: FENCE };
    let lease_left = Duration::from_secs(30);
    TestRun::start(&message.build(), &Claimed { lease, attempt: 2, lost: 0, generation: 3, lease_left })
}
