//! Shared by the handlers' tests: a claimed message, and processes watched by number.
#![allow(dead_code, missing_docs, unreachable_pub, unused_imports)]

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use onceward::store::{Claimed, Lease, OwnerToken};
use onceward::{Key, Message, TestRun};
use onceward_cli::handlers::Program;

#[path = "../../../adapters/postgres/tests/support/claimed.rs"]
mod claimed;

pub use claimed::{FENCE, KEY, claimed, scope};

/// Key, owner and fence.
pub const TOKEN: &str = "000102030405060708090a0b0c0d0e0f0707070707070707070707070707070700064417cb1ee4c1";

/// The message with this payload, from which its key is derived as well.
pub fn message_with_key(payload: &str) -> (TestRun, Message) {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    let key = Key::from_hex(&format!("{:032x}", hasher.finish())).unwrap();
    let lease = Lease { key, owner: OwnerToken::from_bytes([7; 16]), fence: FENCE };
    let lease_left = Duration::from_secs(30);
    let claimed = Claimed { lease, attempt: 1, lost: 0, generation: 0, lease_left };
    TestRun::start(&Message::builder(payload.to_owned()).build(), &claimed)
}

pub fn program<const N: usize>(command: [&str; N]) -> Program {
    Program::new(command.map(str::to_owned).to_vec()).unwrap()
}

pub fn sh(script: &str) -> Program {
    program(["/bin/sh", "-c", script])
}

pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/handlers").join(name)
}

/// False for a process that has ended, reaped or not.
pub fn is_running(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X'))
}

/// Waits for `found` to answer, for at most ten seconds.
pub async fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The process numbers a script writes to `file`, one a line, once there are `count`.
pub async fn pids(file: &Path, count: usize) -> Vec<u32> {
    eventually("the script writes its process numbers", || {
        let text = std::fs::read_to_string(file).ok()?;
        let whole = &text[..=text.rfind('\n')?];
        let pids: Vec<u32> = whole.lines().filter_map(|line| line.parse().ok()).collect();
        (pids.len() >= count).then_some(pids)
    })
    .await
}
