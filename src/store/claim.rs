//! Requests and answers of a [`Store`](super::Store).

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::OwnerToken;
use super::stored_result::{StoredResult, TraceContext, stored};
use crate::key::{Fingerprint, Key};

/// The largest generation: no key is redriven so often. A larger one on a delivery is ignored.
pub const MAX_GENERATION: u32 = 1_000_000;

/// `generation`, unless it is beyond what a key can have.
pub(crate) const fn possible_generation(generation: u32) -> u32 {
    if generation <= MAX_GENERATION { generation } else { 0 }
}

/// What holds for all claims of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimTerms {
    /// How long a claim lasts without renewal, in the store's time.
    pub lease: Duration,
    /// After this many failed runs a key can be claimed for dead-lettering only. At least 1.
    pub max_attempts: u32,
    /// How long records live; see [`Store::claim`](super::Store::claim).
    pub ttl: Duration,
}

/// Asks for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// The key.
    pub key: Key,
    /// Fresh for every claim; the same again only to repeat a claim whose reply was lost.
    pub owner: OwnerToken,
    /// The payload's fingerprint; `None` compares nothing.
    pub fingerprint: Option<Fingerprint>,
    /// The generation the delivery carries: 0, or more after a redrive. It opens a dead key only if it is the next one after
    /// that which died; see [`Store::claim`](super::Store::claim).
    pub generation: u32,
}

impl ClaimRequest {
    /// The generation as stores take it: 0 for one that no key can have ([`MAX_GENERATION`]).
    pub const fn possible_generation(&self) -> u32 {
        possible_generation(self.generation)
    }
}

/// The proof of a claim. It is needed to complete, fail, renew or release; only a store hands it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Lease {
    /// The key.
    pub key: Key,
    /// Who claimed it.
    pub owner: OwnerToken,
    /// Under which fence.
    pub fence: u64,
}

impl Lease {
    /// Key, owner token and fence in 80 hexadecimal digits, for handing the claim to a handler or to a store that takes it in
    /// SQL: with Postgres, `SELECT onceward.complete(token)`. A capability: never to be logged.
    ///
    /// ```
    /// use onceward::store::{Lease, OwnerToken};
    /// use onceward::{Key, Scope};
    ///
    /// let key = Key::of(&Scope::parse("billing")?, "4711")?;
    /// let lease = Lease { key, owner: OwnerToken::from_bytes([0xab; 16]), fence: 7 };
    /// assert_eq!(lease.to_token(), format!("{key}{}0000000000000007", "ab".repeat(16)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn to_token(&self) -> String {
        let parts = [&self.key.as_bytes()[..], self.owner.as_bytes(), &self.fence.to_be_bytes()];
        hex::encode(parts.concat())
    }
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The handler may run.
    Claimed(Claimed),
    /// Another claim is live, and may be for so long. Never a reason to ack.
    InProgress {
        /// The lease that is left.
        retry_in: Duration,
    },
    /// The effect has happened.
    Completed {
        /// The handler's result, if it was kept.
        result: Option<Bytes>,
        /// How long ago.
        age: Duration,
        /// The run that completed it, if that was kept.
        trace: Option<TraceContext>,
    },
    /// All attempts are used up, or the failure was permanent: claimed for dead-lettering only.
    Exhausted(Exhausted),
    /// Its dead letter was published.
    Dead {
        /// Why it failed.
        reason: Reason,
        /// How long ago.
        age: Duration,
        /// Which generation died.
        generation: u32,
    },
    /// The key is known with another payload.
    Mismatch,
}

impl Claim {
    /// The answer for a key that was completed `age` ago, with the bytes that were kept as its result:
    /// [`CompleteRequest::stored_result`].
    pub fn completed(stored: Option<Bytes>, age: Duration) -> Self {
        let Some(stored) = stored else { return Self::Completed { result: None, age, trace: None } };
        let parts = StoredResult::of(&stored);
        Self::Completed { result: parts.result(&stored), age, trace: parts.trace }
    }
}

/// The right to run the handler of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The proof.
    pub lease: Lease,
    /// Which attempt the run will be, from 1.
    pub attempt: u32,
    /// How many earlier claims lapsed. From 1 on, mark the run as started before it starts.
    pub lost: u32,
    /// The key's generation.
    pub generation: u32,
    /// How much of the lease is left (less than the terms' lease only for a repeated claim).
    pub lease_left: Duration,
}

/// The right to dead-letter a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// The proof; [`Store::bury`](super::Store::bury) takes it.
    pub lease: Lease,
    /// Why.
    pub reason: Reason,
    /// The last error's text, if one was written.
    pub error: Option<String>,
    /// Attempts used.
    pub attempts: u32,
    /// Claims that lapsed.
    pub lost: u32,
    /// The key's generation.
    pub generation: u32,
    /// Since the first claim.
    pub first_age: Duration,
    /// Since the last write.
    pub last_age: Duration,
}

/// Why a key failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Every attempt failed.
    AttemptsExhausted,
    /// The handler called the failure permanent.
    Permanent,
    /// Runs ended with the death of their process until the attempts were used up.
    ProcessLost,
    /// No idempotency key, and the policy is to dead-letter.
    MissingKey,
    /// The key is known with another payload, and the policy is to dead-letter.
    Mismatch,
    /// The message could not be read.
    Defect,
}

impl Reason {
    /// All reasons, in the order of their codes.
    pub const ALL: [Self; 6] = [
        Self::AttemptsExhausted,
        Self::Permanent,
        Self::ProcessLost,
        Self::MissingKey,
        Self::Mismatch,
        Self::Defect,
    ];

    /// The name used in dead letters, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::Permanent => "permanent",
            Self::ProcessLost => "process-lost",
            Self::MissingKey => "missing-key",
            Self::Mismatch => "mismatch",
            Self::Defect => "defect",
        }
    }

    /// The code stores keep: stable across versions.
    pub const fn code(self) -> u8 {
        match self {
            Self::AttemptsExhausted => 1,
            Self::Permanent => 2,
            Self::ProcessLost => 3,
            Self::MissingKey => 4,
            Self::Mismatch => 5,
            Self::Defect => 6,
        }
    }

    /// The reason with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Records that the effect of a claim has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompleteRequest {
    /// The claim.
    pub lease: Lease,
    /// The handler's result, to be replayed to duplicates.
    pub result: Option<Bytes>,
    /// The payload's fingerprint, for the record that is inserted if none is found.
    pub fingerprint: Option<Fingerprint>,
    /// The key's generation, for the same case.
    pub generation: u32,
    /// How long the record lives from now.
    pub ttl: Duration,
    /// The run that had the effect, to be linked from its duplicates. Stores keep 34 bytes more for it.
    pub trace: Option<TraceContext>,
}

impl CompleteRequest {
    /// Without a result, for a claim whose payload is not compared and whose key was never moved back.
    pub fn new(lease: Lease, ttl: Duration) -> Self {
        Self { lease, result: None, fingerprint: None, generation: 0, ttl, trace: None }
    }

    /// The bytes that stores keep as the result: the result itself, and in front of it the run if there is one.
    /// [`Claim::completed`] reads them.
    ///
    /// ```
    /// use std::time::Duration;
    /// use onceward::store::{Claim, CompleteRequest, Lease, OwnerToken, TraceContext};
    /// use onceward::{Key, Scope};
    ///
    /// let key = Key::of(&Scope::parse("billing")?, "4711")?;
    /// let lease = Lease { key, owner: OwnerToken::from_bytes([0xab; 16]), fence: 7 };
    /// let trace = TraceContext::new(1, 2);
    /// let request = CompleteRequest { trace, ..CompleteRequest::new(lease, Duration::from_secs(60)) };
    /// let age = Duration::from_secs(1);
    /// let answer = Claim::completed(request.stored_result(), age);
    /// assert_eq!(answer, Claim::Completed { result: None, age, trace });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stored_result(&self) -> Option<Bytes> {
        stored(self.result.as_ref(), self.trace)
    }

    /// The generation as stores take it: 0 for one that no key can have ([`MAX_GENERATION`]).
    pub const fn possible_generation(&self) -> u32 {
        possible_generation(self.generation)
    }
}

/// The result of a completion. Each variant states whether the delivery may be acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Pending and mine (even if the lease had run out): now completed. Ack.
    Completed,
    /// Completed by this very claim before: a reply was lost. Ack.
    Repeated,
    /// No record: forgotten, failed over or expired. Inserted as completed with this fence. Ack; count `claim_lost`.
    Inserted,
    /// Completed or dead by another claim: the effect may have happened twice. Ack; count `suspected_double_effects`.
    DoneByAnother,
    /// Pending or failed by another claim. Do **not** ack.
    HeldByAnother,
}

/// Prolongs a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewRequest {
    /// The claim.
    pub lease: Lease,
    /// The lease from now on.
    pub lease_for: Duration,
    /// Also marks the run as started: a lapse from here on counts as an attempt.
    pub started: bool,
}

/// The result of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Still mine, prolonged. A lease that has run out but was not taken over is revived.
    Renewed,
    /// No longer pending by this claim: the run should stop.
    Lost,
}

/// Writes a failed run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailRequest {
    /// The claim.
    pub lease: Lease,
    /// The error's text. Stores keep the first 1,024 bytes, cut at a character.
    pub error: String,
    /// Set: no further attempt; the claim goes on for the dead-letter publish.
    pub terminal: Option<Reason>,
}

impl FailRequest {
    /// The text stores keep.
    pub fn stored_error(&self) -> &str {
        let mut end = self.error.len().min(1024);
        while !self.error.is_char_boundary(end) {
            end -= 1;
        }
        &self.error[..end]
    }
}

/// The result of recording a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Written.
    Recorded {
        /// Attempts used now.
        attempts: u32,
        /// Since the first claim of the key.
        first_age: Duration,
    },
    /// No longer pending by this claim: nothing written.
    Lost,
}

/// Marks a key dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuryRequest {
    /// The claim whose terminal failure was published.
    pub lease: Lease,
    /// How long the dead record lives from now.
    pub ttl: Duration,
}

/// The result of a burial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burial {
    /// Dead now, or already by this claim. Ack.
    Dead,
    /// The terminal failure is no longer this claim's. The letter is published, so the delivery may be acked; the key
    /// belongs to another.
    Lost,
}

/// Opens a dead key again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedriveRequest {
    /// The key.
    pub key: Key,
    /// The generation of the dead letter that is redriven.
    pub generation: u32,
    /// How long the opened record lives without being claimed.
    pub ttl: Duration,
}

impl RedriveRequest {
    /// The generation that a redrive opens; `None` after [`MAX_GENERATION`].
    pub fn next_generation(&self) -> Option<u32> {
        self.generation.checked_add(1).filter(|next| *next <= MAX_GENERATION)
    }
}

/// The result of a redrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redrive {
    /// Open in this generation: publish the message with it. Also the answer to a repeat that finds the key open and
    /// unfinished.
    Open {
        /// The new generation.
        generation: u32,
    },
    /// A later generation has completed or died: the letter is resolved.
    Resolved,
    /// The key is not known, or not dead in the letter's generation or a later one.
    NotDead,
}
