//! The record of a key as tools see it: [`KeyRecord`].

use std::time::Duration;

use super::Reason;
use super::stored_result::TraceContext;
use crate::key::Key;

/// The state of a known key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyState {
    /// Known but free: released, or opened by a redrive.
    Absent,
    /// Claimed; the handler runs or is about to.
    Pending,
    /// A run failed; attempts are left.
    Failed,
    /// Failed for good; its dead letter is being published.
    Terminal,
    /// The effect has happened.
    Completed,
    /// Its dead letter was published.
    Dead,
}

impl KeyState {
    /// All states, in the order of their codes.
    pub const ALL: [Self; 6] =
        [Self::Absent, Self::Pending, Self::Failed, Self::Terminal, Self::Completed, Self::Dead];

    /// The name used by tools and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Terminal => "terminal",
            Self::Completed => "completed",
            Self::Dead => "dead",
        }
    }

    /// The code stores keep: stable across versions.
    pub const fn code(self) -> u8 {
        match self {
            Self::Absent => 0,
            Self::Pending => 1,
            Self::Failed => 2,
            Self::Terminal => 3,
            Self::Completed => 4,
            Self::Dead => 5,
        }
    }

    /// The state with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// All that a store knows of a key. Times are ages, in the store's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The key.
    pub key: Key,
    /// Its state.
    pub state: KeyState,
    /// The largest fence given out.
    pub fence: u64,
    /// Failed runs.
    pub attempts: u32,
    /// Claims that lapsed.
    pub lost: u32,
    /// Redrives.
    pub generation: u32,
    /// The lease that is left, for pending and terminal keys; zero if it is over.
    pub lease_left: Option<Duration>,
    /// Since the first claim.
    pub first_age: Duration,
    /// Since the last write.
    pub last_age: Duration,
    /// Until the record expires.
    pub expires_in: Duration,
    /// Why it failed for good.
    pub reason: Option<Reason>,
    /// The last error's text.
    pub error: Option<String>,
    /// The size of the kept result in bytes.
    pub result_bytes: Option<usize>,
    /// The run that completed it, if that was kept.
    pub trace: Option<TraceContext>,
}

/// Which records to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// Only this state.
    pub state: Option<KeyState>,
    /// Only keys after this one.
    pub after: Option<Key>,
    /// At most this many; 1 to 10,000.
    pub limit: u32,
}

/// Keys by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyStats {
    counts: [u64; KeyState::ALL.len()],
}

impl KeyStats {
    /// How many keys are in `state`.
    pub fn get(&self, state: KeyState) -> u64 {
        self.counts[usize::from(state.code())]
    }

    /// Sets how many keys are in `state`.
    pub fn set(&mut self, state: KeyState, count: u64) {
        self.counts[usize::from(state.code())] = count;
    }

    /// All known keys.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}
