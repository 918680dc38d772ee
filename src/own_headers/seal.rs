//! The message authentication code of our own headers: [`Seal`].

use blake3::{Hash, Hasher};

use super::secret::{MacKey, OwnSecrets};
use crate::headers::{
    HEADER_ATTEMPTS, HEADER_FIRST_AT, HEADER_GENERATION, HEADER_ID, HEADER_KEY, HEADER_LAST_AT, HEADER_LOST,
    HEADER_MAC, HEADER_MESSAGE_ID, HEADER_ORIGIN, HEADER_POSITION, HEADER_REASON, HEADER_SCOPE,
    HEADER_TIMESTAMP,
};

/// The version of the encoding below; another one is not believed.
const FORMAT: &str = "1";

/// The headers that a MAC covers, besides the payload, and the header that holds it. A seal is never valid in place of
/// one with another header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The header with the MAC: `FORMAT.KEYID.MAC`, the last two in hexadecimal digits.
    pub header: &'static str,
    /// The headers that it covers, each with all its values; absence is covered as well.
    pub covers: &'static [&'static str],
}

/// The seal of dead letters: all headers of theirs that are ever read. The error's text is for people only, and may be
/// shortened on the way.
pub const LETTER: Seal = Seal {
    header: HEADER_MAC,
    covers: &[
        HEADER_SCOPE,
        HEADER_KEY,
        HEADER_GENERATION,
        HEADER_REASON,
        HEADER_ATTEMPTS,
        HEADER_LOST,
        HEADER_ORIGIN,
        HEADER_POSITION,
        HEADER_ID,
        HEADER_MESSAGE_ID,
        HEADER_FIRST_AT,
        HEADER_LAST_AT,
        HEADER_TIMESTAMP,
    ],
};

impl Seal {
    /// The value of the MAC's header under the current secret.
    pub(super) fn value<'h, I>(
        &self,
        secrets: &OwnSecrets,
        headers: impl Fn() -> I,
        payload: Option<&[u8]>,
    ) -> String
    where
        I: Iterator<Item = (&'h str, &'h [u8])>,
    {
        let key = &secrets.current;
        format!("{FORMAT}.{}.{}", key.id, self.mac(key, headers, payload).to_hex())
    }

    /// True if there is one MAC of ours and it is right. Compared in constant time.
    pub(super) fn is_valid<'h, I>(
        &self,
        secrets: &OwnSecrets,
        headers: impl Fn() -> I,
        payload: Option<&[u8]>,
    ) -> bool
    where
        I: Iterator<Item = (&'h str, &'h [u8])>,
    {
        let mut values = headers().filter(|(name, _)| *name == self.header).map(|(_, value)| value);
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let Some((key, mac)) = parse(secrets, value) else { return false };
        self.mac(key, headers, payload) == mac
    }

    fn mac<'h, I>(&self, key: &MacKey, headers: impl Fn() -> I, payload: Option<&[u8]>) -> Hash
    where
        I: Iterator<Item = (&'h str, &'h [u8])>,
    {
        let mut hasher = Hasher::new_keyed(&key.key);
        part(&mut hasher, FORMAT.as_bytes());
        part(&mut hasher, self.header.as_bytes());
        for covered in self.covers {
            part(&mut hasher, covered.as_bytes());
            let values = || headers().filter(|(name, _)| name == covered).map(|(_, value)| value);
            hasher.update(&(values().count() as u64).to_le_bytes());
            values().for_each(|value| part(&mut hasher, value));
        }
        hasher.update(&[u8::from(payload.is_none())]);
        part(&mut hasher, payload.unwrap_or_default());
        hasher.finalize()
    }
}

fn parse<'s>(secrets: &'s OwnSecrets, value: &[u8]) -> Option<(&'s MacKey, Hash)> {
    let mut parts = std::str::from_utf8(value).ok()?.split('.');
    let (format, id, mac) = (parts.next()?, parts.next()?, parts.next()?);
    if format != FORMAT || parts.next().is_some() {
        return None;
    }
    Some((secrets.find(id)?, Hash::from_hex(mac).ok()?))
}

/// Length first: no two lists of parts are the same bytes.
fn part(into: &mut Hasher, bytes: &[u8]) {
    into.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}
