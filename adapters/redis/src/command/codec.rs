//! Binary encoding of script arguments and replies: [`ArgumentWriter`], [`ReplyReader`].
//!
//! The items of a call are packed into one argument, its results into one reply.

use std::time::Duration;

use bytes::Bytes;
use onceward::Fingerprint;
use onceward::store::transition::micros;
use onceward::store::{OwnerToken, Reason};

/// The longest lease and TTL that is sent to scripts; longer ones are shortened to it. The sum of both and the clock stays
/// below 2^53 µs, up to which Lua's numbers are exact.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3_600);

/// Packs the argument of a script: numbers big-endian, as its `struct.unpack` reads them.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArgumentWriter(Vec<u8>);

impl ArgumentWriter {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn duration(&mut self, value: Duration) {
        self.u64(micros(value.min(LONGEST)));
    }

    pub(crate) fn owner(&mut self, owner: &OwnerToken) {
        self.0.extend_from_slice(owner.as_bytes());
    }

    /// Always 17 bytes: a flag, then the fingerprint or zeros.
    pub(crate) fn fingerprint(&mut self, fingerprint: Option<Fingerprint>) {
        self.u8(u8::from(fingerprint.is_some()));
        self.0
            .extend_from_slice(fingerprint.map_or([0; 16], |fingerprint| *fingerprint.as_bytes()).as_slice());
    }

    /// The length, then the bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        // Longer items are rejected before they are sent: see `ScriptBatch`.
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn optional_bytes(&mut self, bytes: Option<&Bytes>) {
        self.u8(u8::from(bytes.is_some()));
        self.bytes(bytes.map_or(&[], |bytes| bytes));
    }

    pub(crate) fn starting_with(head: &[u8]) -> Self {
        Self(head.to_vec())
    }

    pub(crate) fn append(&mut self, mut item: Self) {
        self.0.append(&mut item.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A reply that the scripts of this version never return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidReply;

/// Unpacks the reply of a script.
#[derive(Debug)]
pub(crate) struct ReplyReader<'a>(&'a [u8]);

impl<'a> ReplyReader<'a> {
    pub(crate) fn new(reply: &'a [u8]) -> Self {
        Self(reply)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes that have not been read yet.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], InvalidReply> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(InvalidReply)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], InvalidReply> {
        self.take(N)?.try_into().map_err(|_| InvalidReply)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, InvalidReply> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, InvalidReply> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, InvalidReply> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn flag(&mut self) -> Result<bool, InvalidReply> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(InvalidReply),
        }
    }

    pub(crate) fn micros(&mut self) -> Result<Duration, InvalidReply> {
        Ok(Duration::from_micros(self.u64()?))
    }

    pub(crate) fn millis(&mut self) -> Result<Duration, InvalidReply> {
        Ok(Duration::from_millis(self.u64()?))
    }

    /// A reason; an unknown one, of a later version, reads as the first one.
    pub(crate) fn reason(&mut self) -> Result<Reason, InvalidReply> {
        Ok(Reason::from_code(self.u8()?).unwrap_or(Reason::AttemptsExhausted))
    }

    pub(crate) fn optional_reason(&mut self) -> Result<Option<Reason>, InvalidReply> {
        Ok(match self.u8()? {
            0 => None,
            code => Some(Reason::from_code(code).unwrap_or(Reason::AttemptsExhausted)),
        })
    }

    pub(crate) fn optional_bytes(&mut self) -> Result<Option<Bytes>, InvalidReply> {
        let (is_present, length) = (self.flag()?, self.u32()?);
        let bytes = self.take(usize::try_from(length).map_err(|_| InvalidReply)?)?;
        Ok(is_present.then(|| Bytes::copy_from_slice(bytes)))
    }

    pub(crate) fn optional_text(&mut self) -> Result<Option<String>, InvalidReply> {
        Ok(self.optional_bytes()?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// A length, then that many bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], InvalidReply> {
        let length = usize::try_from(self.u32()?).map_err(|_| InvalidReply)?;
        self.take(length)
    }

    /// As [`bytes`](Self::bytes), of UTF-8.
    pub(crate) fn text(&mut self) -> Result<String, InvalidReply> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| InvalidReply)
    }

    /// The size of a result whose bytes are not in the reply.
    pub(crate) fn optional_size(&mut self) -> Result<Option<usize>, InvalidReply> {
        let (is_present, length) = (self.flag()?, self.u32()?);
        Ok(is_present.then_some(usize::try_from(length).map_err(|_| InvalidReply)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_reply_is_read_or_rejected_without_a_panic() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let length = rng.usize(..40);
            let reply: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
            let mut reader = ReplyReader::new(&reply);
            let _ = (reader.optional_bytes(), reader.flag(), reader.optional_text(), reader.u64());
            let _ = (reader.optional_size(), reader.optional_reason(), reader.micros());
        }
    }

    #[test]
    fn a_short_reply_is_invalid() {
        assert_eq!(ReplyReader::new(&[1, 2, 3]).u32(), Err(InvalidReply));
        assert_eq!(ReplyReader::new(&[1, 0, 0, 0, 9, 1]).optional_bytes(), Err(InvalidReply));
        assert_eq!(ReplyReader::new(&[2]).flag(), Err(InvalidReply));
    }

    #[test]
    fn the_longest_duration_stays_exact_in_lua() {
        let mut writer = ArgumentWriter::default();
        writer.duration(Duration::MAX);
        let longest = u64::from_be_bytes(writer.as_bytes().try_into().unwrap());
        let year_2050 = 2_524_608_000_000_000_u64;
        assert!(2 * longest + year_2050 < 1 << 53);
    }
}
