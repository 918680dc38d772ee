//! Decodes records from the columns of a SQL table: [`RecordColumns`].

use bytes::Bytes;

use super::super::{KeyState, OwnerToken, Reason};
use super::{Detail, Record};
use crate::key::Fingerprint;

/// The largest fence that is believed. A larger one was not computed from a clock: the row is damaged, and the fence of
/// the next claim could not exceed it.
const MAX_FENCE: u64 = 1 << 62;

/// The largest number of failed runs or lapsed claims that is believed.
const MAX_RUNS: u32 = i32::MAX as u32;

/// The values of one row of a table of keys, as a SQL store read them. [`decode`](Self::decode) checks them.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "each is the column of that name, which `Record` describes")]
pub struct RecordColumns<'r> {
    pub state: i64,
    pub started: bool,
    pub owner: &'r [u8],
    pub fence: i64,
    pub attempts: i64,
    pub lost: i64,
    pub generation: i64,
    pub lease_until: i64,
    pub first_at: i64,
    pub written_at: i64,
    pub ttl: i64,
    pub reason: Option<i64>,
    pub fingerprint: Option<&'r [u8]>,
    pub error: Option<&'r str>,
    pub result: Option<&'r [u8]>,
}

impl RecordColumns<'_> {
    /// The record of the row.
    ///
    /// # Errors
    /// A description of the first invalid value, to complete "the row holds …".
    pub fn decode(self) -> Result<Record, String> {
        let state = u8::try_from(self.state).ok().and_then(KeyState::from_code);
        let reason = self.reason.map(|code| {
            let known = u8::try_from(code).ok().and_then(Reason::from_code);
            known.ok_or_else(|| format!("reason {code}, which this version does not know"))
        });
        let fence = non_negative("fence", self.fence)?;
        if fence > MAX_FENCE {
            return Err(format!("fence {fence}, which no clock reaches"));
        }
        let has_detail = self.error.is_some() || self.result.is_some();
        Ok(Record {
            state: state.ok_or_else(|| format!("state {}, which this version does not know", self.state))?,
            started: self.started,
            reason: reason.transpose()?,
            owner: OwnerToken::from_bytes(sixteen_bytes("owner", self.owner)?),
            fingerprint: self
                .fingerprint
                .map(|bytes| sixteen_bytes("fingerprint", bytes).map(Fingerprint::from_bytes))
                .transpose()?,
            fence,
            attempts: run_count("attempts", self.attempts)?,
            lost: run_count("lost", self.lost)?,
            generation: small("generation", self.generation)?,
            lease_until: non_negative("lease_until", self.lease_until)?,
            first_at: non_negative("first_at", self.first_at)?,
            written_at: non_negative("written_at", self.written_at)?,
            ttl: non_negative("ttl", self.ttl)?,
            detail: has_detail.then(|| {
                let error = self.error.map(str::to_owned);
                Box::new(Detail { error, result: self.result.map(Bytes::copy_from_slice) })
            }),
        })
    }
}

fn non_negative(name: &str, value: i64) -> Result<u64, String> {
    u64::try_from(value).map_err(|_| format!("{name} {value}, which is negative"))
}

fn small(name: &str, value: i64) -> Result<u32, String> {
    let value = non_negative(name, value)?;
    u32::try_from(value).map_err(|_| format!("{name} {value}, which is too large"))
}

fn run_count(name: &str, value: i64) -> Result<u32, String> {
    let value = small(name, value)?;
    if value > MAX_RUNS { Err(format!("{name} {value}, which no runs reach")) } else { Ok(value) }
}

fn sixteen_bytes(name: &str, bytes: &[u8]) -> Result<[u8; 16], String> {
    bytes.try_into().map_err(|_| format!("{name} of {} bytes instead of 16", bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> RecordColumns<'static> {
        RecordColumns {
            state: 4,
            owner: &[7; 16],
            fence: 5,
            generation: i64::from(u32::MAX),
            fingerprint: Some(&[8; 16]),
            error: Some("why"),
            ..RecordColumns::default()
        }
    }

    #[test]
    fn valid_columns_are_a_record() {
        let record = columns().decode().unwrap();
        assert_eq!((record.state, record.fence, record.generation), (KeyState::Completed, 5, u32::MAX));
        assert_eq!(record.owner, OwnerToken::from_bytes([7; 16]));
        assert_eq!(record.fingerprint, Some(Fingerprint::from_bytes([8; 16])));
        assert_eq!(record.detail.unwrap().error.as_deref(), Some("why"));
        let plain = RecordColumns { error: None, ..columns() }.decode().unwrap();
        assert!(plain.detail.is_none());
    }

    #[test]
    fn each_invalid_value_is_named() {
        for (spoil, named) in [
            ((|row| row.state = 6) as fn(&mut RecordColumns<'static>), "state 6"),
            (|row| row.state = -1, "state -1"),
            (|row| row.reason = Some(200), "reason 200"),
            (|row| row.owner = &[1; 15], "owner of 15 bytes"),
            (|row| row.fingerprint = Some(&[]), "fingerprint of 0 bytes"),
            (|row| row.fence = -1, "fence -1"),
            (|row| row.fence = i64::MAX, "no clock reaches"),
            (|row| row.attempts = i64::from(u32::MAX), "no runs reach"),
            (|row| row.lost = i64::MAX, "too large"),
            (|row| row.generation = i64::from(u32::MAX) + 1, "too large"),
            (|row| row.lease_until = -1, "lease_until -1"),
            (|row| row.first_at = -1, "first_at -1"),
            (|row| row.written_at = -1, "written_at -1"),
            (|row| row.ttl = -1, "ttl -1"),
        ] {
            let mut row = columns();
            spoil(&mut row);
            let what = row.decode().unwrap_err();
            assert!(what.contains(named), "{named}: {what}");
        }
    }
}
