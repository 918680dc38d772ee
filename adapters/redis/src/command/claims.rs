//! Commands of a pipeline: claim, complete, renew, fail, bury and release.

use onceward::Key;
use onceward::store::{
    Burial, BuryRequest, Claim, ClaimRequest, Claimed, CompleteRequest, Completion, Exhausted, FailRequest,
    Failure, Lease, RenewRequest, Renewal,
};

use crate::command::codec::{ArgumentWriter, InvalidReply, ReplyReader};
use crate::command::script::{self, LuaScript};
use crate::command::{ScriptCommand, decode_bool};

fn encode_lease(lease: &Lease, writer: &mut ArgumentWriter) {
    writer.owner(&lease.owner);
    writer.u64(lease.fence);
}

impl ScriptCommand for ClaimRequest {
    type Reply = Claim;
    const OPERATION: &'static str = "claim keys in Redis";
    const NEEDS_REPLICAS: bool = true;

    fn script() -> &'static LuaScript {
        &script::CLAIM
    }

    fn key(&self) -> &Key {
        &self.key
    }

    fn encode(&self, writer: &mut ArgumentWriter) {
        writer.owner(&self.owner);
        writer.u32(self.possible_generation());
        writer.fingerprint(self.fingerprint);
    }

    fn decode(&self, tag: u8, reader: &mut ReplyReader<'_>) -> Result<Claim, InvalidReply> {
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
                Claim::completed(reader.optional_bytes()?, age)
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
            _ => return Err(InvalidReply),
        })
    }
}

impl ScriptCommand for CompleteRequest {
    type Reply = Completion;
    const OPERATION: &'static str = "complete keys in Redis";
    const NEEDS_REPLICAS: bool = true;

    fn script() -> &'static LuaScript {
        &script::COMPLETE
    }

    fn key(&self) -> &Key {
        &self.lease.key
    }

    fn encode(&self, writer: &mut ArgumentWriter) {
        encode_lease(&self.lease, writer);
        writer.u32(self.possible_generation());
        writer.duration(self.ttl);
        writer.fingerprint(self.fingerprint);
        writer.optional_bytes(self.stored_result().as_ref());
    }

    fn decode(&self, tag: u8, _: &mut ReplyReader<'_>) -> Result<Completion, InvalidReply> {
        Ok(match tag {
            b'C' => Completion::Completed,
            b'R' => Completion::Repeated,
            b'I' => Completion::Inserted,
            b'D' => Completion::DoneByAnother,
            b'H' => Completion::HeldByAnother,
            _ => return Err(InvalidReply),
        })
    }
}

impl ScriptCommand for RenewRequest {
    type Reply = Renewal;
    const OPERATION: &'static str = "renew leases in Redis";
    const NEEDS_REPLICAS: bool = false;

    fn script() -> &'static LuaScript {
        &script::RENEW
    }

    fn key(&self) -> &Key {
        &self.lease.key
    }

    fn encode(&self, writer: &mut ArgumentWriter) {
        encode_lease(&self.lease, writer);
        writer.duration(self.lease_for);
        writer.u8(u8::from(self.started));
    }

    fn decode(&self, tag: u8, _: &mut ReplyReader<'_>) -> Result<Renewal, InvalidReply> {
        match tag {
            b'R' => Ok(Renewal::Renewed),
            b'L' => Ok(Renewal::Lost),
            _ => Err(InvalidReply),
        }
    }
}

impl ScriptCommand for FailRequest {
    type Reply = Failure;
    const OPERATION: &'static str = "write failed runs to Redis";
    const NEEDS_REPLICAS: bool = true;

    fn script() -> &'static LuaScript {
        &script::FAIL
    }

    fn key(&self) -> &Key {
        &self.lease.key
    }

    fn encode(&self, writer: &mut ArgumentWriter) {
        encode_lease(&self.lease, writer);
        writer.u8(self.terminal.map_or(0, |reason| reason.code()));
        writer.bytes(self.stored_error().as_bytes());
    }

    fn decode(&self, tag: u8, reader: &mut ReplyReader<'_>) -> Result<Failure, InvalidReply> {
        match tag {
            b'R' => Ok(Failure::Recorded { attempts: reader.u32()?, first_age: reader.micros()? }),
            b'L' => Ok(Failure::Lost),
            _ => Err(InvalidReply),
        }
    }
}

impl ScriptCommand for BuryRequest {
    type Reply = Burial;
    const OPERATION: &'static str = "mark keys dead in Redis";
    const NEEDS_REPLICAS: bool = true;

    fn script() -> &'static LuaScript {
        &script::BURY
    }

    fn key(&self) -> &Key {
        &self.lease.key
    }

    fn encode(&self, writer: &mut ArgumentWriter) {
        encode_lease(&self.lease, writer);
        writer.duration(self.ttl);
    }

    fn decode(&self, tag: u8, _: &mut ReplyReader<'_>) -> Result<Burial, InvalidReply> {
        match tag {
            b'B' => Ok(Burial::Dead),
            b'L' => Ok(Burial::Lost),
            _ => Err(InvalidReply),
        }
    }
}

/// A release.
impl ScriptCommand for Lease {
    type Reply = bool;
    const OPERATION: &'static str = "release claims in Redis";
    const NEEDS_REPLICAS: bool = false;

    fn script() -> &'static LuaScript {
        &script::RELEASE
    }

    fn key(&self) -> &Key {
        &self.key
    }

    fn encode(&self, writer: &mut ArgumentWriter) {
        encode_lease(self, writer);
    }

    fn decode(&self, tag: u8, _: &mut ReplyReader<'_>) -> Result<bool, InvalidReply> {
        decode_bool(tag)
    }
}
