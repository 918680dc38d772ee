//! What each script is asked and what it answers: [`Ask`].

pub(crate) mod codec;
pub(crate) mod keyspace;
pub(crate) mod script;

use std::time::Duration;

use onceward::Key;
use onceward::store::{
    Burial, BuryRequest, Claim, ClaimRequest, Claimed, CompleteRequest, Completion, Exhausted, FailRequest,
    Failure, KeyRecord, KeyState, Lease, Redrive, RedriveRequest, RenewRequest, Renewal,
};

use crate::command::codec::{Garbled, Reader, Writer};
use crate::command::script::Script;

/// One item of a batch.
pub(crate) trait Ask: Sync {
    type Answer: Send;

    /// What is attempted, for errors.
    const OPERATION: &'static str;

    /// True if it matters that the write reaches the replicas.
    const IS_PROMISE: bool;

    fn script() -> &'static Script;

    fn key(&self) -> &Key;

    fn write(&self, writer: &mut Writer);

    /// Reads an answer that begins with `tag`.
    fn read(&self, tag: u8, reader: &mut Reader<'_>) -> Result<Self::Answer, Garbled>;
}

fn write_lease(lease: &Lease, writer: &mut Writer) {
    writer.owner(&lease.owner);
    writer.u64(lease.fence);
}

impl Ask for ClaimRequest {
    type Answer = Claim;
    const OPERATION: &'static str = "claim keys in Redis";
    const IS_PROMISE: bool = true;

    fn script() -> &'static Script {
        &script::CLAIM
    }

    fn key(&self) -> &Key {
        &self.key
    }

    fn write(&self, writer: &mut Writer) {
        writer.owner(&self.owner);
        writer.u32(self.possible_generation());
        writer.fingerprint(self.fingerprint);
    }

    fn read(&self, tag: u8, reader: &mut Reader<'_>) -> Result<Claim, Garbled> {
        let lease = |fence| Lease { key: self.key, owner: self.owner, fence };
        Ok(match tag {
            b'C' => Claim::Claimed(Claimed {
                lease: lease(reader.u64()?),
                attempt: reader.u32()?,
                lost: reader.u32()?,
                generation: reader.u32()?,
                lease_left: reader.micros()?,
            }),
            b'P' => Claim::InProgress { retry_in: reader.micros()? },
            b'D' => {
                let age = reader.micros()?;
                Claim::Completed { result: reader.optional_bytes()?, age }
            }
            b'X' => {
                let lease = lease(reader.u64()?);
                let reason = reader.reason()?;
                let (attempts, lost, generation) = (reader.u32()?, reader.u32()?, reader.u32()?);
                let (first_age, last_age) = (reader.micros()?, reader.micros()?);
                let error = reader.optional_text()?;
                Claim::Exhausted(Exhausted {
                    lease,
                    reason,
                    error,
                    attempts,
                    lost,
                    generation,
                    first_age,
                    last_age,
                })
            }
            b'B' => {
                Claim::Dead { reason: reader.reason()?, age: reader.micros()?, generation: reader.u32()? }
            }
            b'M' => Claim::Mismatch,
            _ => return Err(Garbled),
        })
    }
}

impl Ask for CompleteRequest {
    type Answer = Completion;
    const OPERATION: &'static str = "complete keys in Redis";
    const IS_PROMISE: bool = true;

    fn script() -> &'static Script {
        &script::COMPLETE
    }

    fn key(&self) -> &Key {
        &self.lease.key
    }

    fn write(&self, writer: &mut Writer) {
        write_lease(&self.lease, writer);
        writer.u32(self.possible_generation());
        writer.duration(self.ttl);
        writer.fingerprint(self.fingerprint);
        writer.optional_bytes(self.result.as_ref());
    }

    fn read(&self, tag: u8, _: &mut Reader<'_>) -> Result<Completion, Garbled> {
        Ok(match tag {
            b'C' => Completion::Completed,
            b'R' => Completion::Repeated,
            b'I' => Completion::Inserted,
            b'D' => Completion::DoneByAnother,
            b'H' => Completion::HeldByAnother,
            _ => return Err(Garbled),
        })
    }
}

impl Ask for RenewRequest {
    type Answer = Renewal;
    const OPERATION: &'static str = "renew leases in Redis";
    const IS_PROMISE: bool = false;

    fn script() -> &'static Script {
        &script::RENEW
    }

    fn key(&self) -> &Key {
        &self.lease.key
    }

    fn write(&self, writer: &mut Writer) {
        write_lease(&self.lease, writer);
        writer.duration(self.lease_for);
        writer.u8(u8::from(self.started));
    }

    fn read(&self, tag: u8, _: &mut Reader<'_>) -> Result<Renewal, Garbled> {
        match tag {
            b'R' => Ok(Renewal::Renewed),
            b'L' => Ok(Renewal::Lost),
            _ => Err(Garbled),
        }
    }
}

impl Ask for FailRequest {
    type Answer = Failure;
    const OPERATION: &'static str = "write failed runs to Redis";
    const IS_PROMISE: bool = true;

    fn script() -> &'static Script {
        &script::FAIL
    }

    fn key(&self) -> &Key {
        &self.lease.key
    }

    fn write(&self, writer: &mut Writer) {
        write_lease(&self.lease, writer);
        writer.u8(self.terminal.map_or(0, |reason| reason.code()));
        writer.bytes(self.stored_error().as_bytes());
    }

    fn read(&self, tag: u8, reader: &mut Reader<'_>) -> Result<Failure, Garbled> {
        match tag {
            b'R' => Ok(Failure::Recorded { attempts: reader.u32()?, first_age: reader.micros()? }),
            b'L' => Ok(Failure::Lost),
            _ => Err(Garbled),
        }
    }
}

impl Ask for BuryRequest {
    type Answer = Burial;
    const OPERATION: &'static str = "mark keys dead in Redis";
    const IS_PROMISE: bool = true;

    fn script() -> &'static Script {
        &script::BURY
    }

    fn key(&self) -> &Key {
        &self.lease.key
    }

    fn write(&self, writer: &mut Writer) {
        write_lease(&self.lease, writer);
        writer.duration(self.ttl);
    }

    fn read(&self, tag: u8, _: &mut Reader<'_>) -> Result<Burial, Garbled> {
        match tag {
            b'B' => Ok(Burial::Dead),
            b'L' => Ok(Burial::Lost),
            _ => Err(Garbled),
        }
    }
}

fn yes_or_no(tag: u8) -> Result<bool, Garbled> {
    match tag {
        b'Y' => Ok(true),
        b'N' => Ok(false),
        _ => Err(Garbled),
    }
}

/// A release.
impl Ask for Lease {
    type Answer = bool;
    const OPERATION: &'static str = "release claims in Redis";
    const IS_PROMISE: bool = false;

    fn script() -> &'static Script {
        &script::RELEASE
    }

    fn key(&self) -> &Key {
        &self.key
    }

    fn write(&self, writer: &mut Writer) {
        write_lease(self, writer);
    }

    fn read(&self, tag: u8, _: &mut Reader<'_>) -> Result<bool, Garbled> {
        yes_or_no(tag)
    }
}

impl Ask for RedriveRequest {
    type Answer = Redrive;
    const OPERATION: &'static str = "redrive keys in Redis";
    const IS_PROMISE: bool = true;

    fn script() -> &'static Script {
        &script::REDRIVE
    }

    fn key(&self) -> &Key {
        &self.key
    }

    fn write(&self, writer: &mut Writer) {
        writer.u32(self.generation);
        // 0: there is no next one.
        writer.u32(self.next_generation().unwrap_or(0));
        writer.duration(self.ttl);
    }

    fn read(&self, tag: u8, _: &mut Reader<'_>) -> Result<Redrive, Garbled> {
        match tag {
            b'O' => match self.next_generation() {
                Some(generation) => Ok(Redrive::Open { generation }),
                None => Err(Garbled),
            },
            b'R' => Ok(Redrive::Resolved),
            b'N' => Ok(Redrive::NotDead),
            _ => Err(Garbled),
        }
    }
}

/// Forgets a key.
#[derive(Debug)]
pub(crate) struct Forget(pub(crate) Key);

impl Ask for Forget {
    type Answer = bool;
    const OPERATION: &'static str = "forget keys in Redis";
    const IS_PROMISE: bool = true;

    fn script() -> &'static Script {
        &script::FORGET
    }

    fn key(&self) -> &Key {
        &self.0
    }

    fn write(&self, _: &mut Writer) {}

    fn read(&self, tag: u8, _: &mut Reader<'_>) -> Result<bool, Garbled> {
        yes_or_no(tag)
    }
}

/// Looks at a key.
#[derive(Debug)]
pub(crate) struct Inspect(pub(crate) Key);

impl Ask for Inspect {
    type Answer = Option<KeyRecord>;
    const OPERATION: &'static str = "inspect keys in Redis";
    const IS_PROMISE: bool = false;

    fn script() -> &'static Script {
        &script::INSPECT
    }

    fn key(&self) -> &Key {
        &self.0
    }

    fn write(&self, _: &mut Writer) {}

    fn read(&self, tag: u8, reader: &mut Reader<'_>) -> Result<Option<KeyRecord>, Garbled> {
        if tag == b'N' {
            return Ok(None);
        } else if tag != b'K' {
            return Err(Garbled);
        }
        let state = KeyState::from_code(reader.u8()?).ok_or(Garbled)?;
        let fence = reader.u64()?;
        let (attempts, lost, generation) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let (holds, lease_left): (bool, Duration) = (reader.flag()?, reader.micros()?);
        let (first_age, last_age, expires_in) = (reader.micros()?, reader.micros()?, reader.millis()?);
        let reason = reader.optional_reason()?;
        let result_bytes = reader.optional_size()?;
        let error = reader.optional_text()?;
        Ok(Some(KeyRecord {
            key: self.0,
            state,
            fence,
            attempts,
            lost,
            generation,
            lease_left: holds.then_some(lease_left),
            first_age,
            last_age,
            expires_in,
            reason,
            error,
            result_bytes,
        }))
    }
}

/// Asks for a key's state only.
#[derive(Debug)]
pub(crate) struct State(pub(crate) Key);

impl Ask for State {
    type Answer = Option<KeyState>;
    const OPERATION: &'static str = "count keys in Redis";
    const IS_PROMISE: bool = false;

    fn script() -> &'static Script {
        &script::STATES
    }

    fn key(&self) -> &Key {
        &self.0
    }

    fn write(&self, _: &mut Writer) {}

    fn read(&self, tag: u8, _: &mut Reader<'_>) -> Result<Option<KeyState>, Garbled> {
        match tag {
            b'-' => Ok(None),
            _ => KeyState::from_code(tag.wrapping_sub(b'0')).map(Some).ok_or(Garbled),
        }
    }
}
