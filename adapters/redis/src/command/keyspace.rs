//! Names of Redis keys: [`Keyspace`].

use onceward::{Error, ErrorKind, Key, Scope};

/// The number of bytes of a scope's hash in its keys, which lists and statistics select records by. Identity does not rest
/// on them alone: a [`Key`] is a hash of its scope too.
const TAG: usize = 6;

/// Names the records and the few other keys of one store.
///
/// ```text
/// ow:{b}tttttt0123456789abcdef   a record: bucket, scope tag, key; with the default prefix 28 bytes, so that Redis
///                                keeps it in 32
/// ow:!format                     the version of the format
/// ow:!checkpoint:tttttt…         a checkpoint: scope tag, hash of the source's name
/// ow:!audit:tttttt               what operators changed
/// ow:!settled:tttttt             the hashes of the letters that are done with
/// ow:!ctttttt                    the directory of the compact records of a scope
/// ow:!cttttttnnnn                the slice `n` of them
/// ow:{b}!                        the write that `WAIT` waits for
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Keyspace {
    prefix: Box<[u8]>,
}

/// Selects the records of one scope within a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScopeTag([u8; TAG]);

impl ScopeTag {
    pub(crate) fn of(scope: &Scope) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"onceward redis scope 1\0").update(scope.as_str().as_bytes());
        let mut tag = [0; TAG];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG]);
        Self(tag)
    }
}

impl Keyspace {
    /// The longest prefix.
    const MAX_PREFIX: usize = 64;

    /// A keyspace whose keys begin with `prefix` and a colon.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the prefix is empty, too long, or contains other characters than letters, digits and
    /// `: - _ .`
    pub(crate) fn new(prefix: &str) -> Result<Self, Error> {
        let invalid =
            |what: &'static str| Err(Error::new(ErrorKind::Config, "use this prefix for Redis keys", what));
        if prefix.is_empty() || prefix.len() > Self::MAX_PREFIX {
            return invalid("it must have 1 to 64 characters");
        }
        if !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.".contains(&byte)) {
            return invalid("it may contain ASCII letters, digits, and : - _ . only");
        }
        Ok(Self { prefix: format!("{prefix}:").into_bytes().into_boxed_slice() })
    }

    /// The bucket of `key`: one of 64 bytes, the hash tag of its name. Records of one bucket are in one slot of a
    /// cluster. Few buckets mean large calls, and the slots of these bytes are spread evenly: up to 16 nodes with equal
    /// ranges have nearly equal shares.
    pub(crate) fn bucket(key: &Key) -> u8 {
        0x80 | (key.as_bytes()[0] & 0b0111_1011)
    }

    pub(crate) fn record(&self, tag: ScopeTag, key: &Key) -> Vec<u8> {
        let mut name = self.in_bucket(Self::bucket(key), TAG + 16);
        name.extend_from_slice(&tag.0);
        name.extend_from_slice(key.as_bytes());
        name
    }

    /// The key of the write that `WAIT` waits for, in the slot of `bucket`.
    pub(crate) fn wait(&self, bucket: u8) -> Vec<u8> {
        let mut name = self.in_bucket(bucket, 1);
        name.push(b'!');
        name
    }

    pub(crate) fn format(&self) -> Vec<u8> {
        self.named(b"!format")
    }

    pub(crate) fn checkpoint(&self, tag: ScopeTag, source: &str) -> Vec<u8> {
        let mut name = self.named(b"!checkpoint:");
        name.extend_from_slice(&tag.0);
        name.extend_from_slice(&blake3::hash(source.as_bytes()).as_bytes()[..16]);
        name
    }

    pub(crate) fn audit(&self, tag: ScopeTag) -> Vec<u8> {
        [&self.named(b"!audit:")[..], &tag.0].concat()
    }

    pub(crate) fn settled(&self, tag: ScopeTag) -> Vec<u8> {
        [&self.named(b"!settled:")[..], &tag.0].concat()
    }

    /// The key of the directory of compact records.
    pub(crate) fn directory(&self, tag: ScopeTag) -> Vec<u8> {
        [&self.named(b"!c")[..], &tag.0].concat()
    }

    /// The key of a slice of compact records.
    pub(crate) fn slice(&self, tag: ScopeTag, number: u32) -> Vec<u8> {
        [&self.directory(tag)[..], &number.to_be_bytes()].concat()
    }

    /// The `SCAN` pattern that matches the records of `tag`, and possibly others, which [`parse`](Self::parse) rejects.
    pub(crate) fn pattern(&self, tag: ScopeTag) -> Vec<u8> {
        let mut pattern = self.named(b"{?}");
        for byte in tag.0 {
            if b"*?[]^-\\".contains(&byte) {
                pattern.push(b'\\');
            }
            pattern.push(byte);
        }
        pattern.push(b'*');
        pattern
    }

    /// The key of a record of `tag`; `None` for any other Redis key.
    pub(crate) fn parse(&self, tag: ScopeTag, name: &[u8]) -> Option<Key> {
        let bytes = name.get(name.len().checked_sub(16)?..)?;
        let key = Key::from_bytes(bytes.try_into().ok()?);
        (self.record(tag, &key) == name).then_some(key)
    }

    fn in_bucket(&self, bucket: u8, more: usize) -> Vec<u8> {
        let mut name = Vec::with_capacity(self.prefix.len() + 3 + more);
        name.extend_from_slice(&self.prefix);
        name.extend_from_slice(&[b'{', bucket, b'}']);
        name
    }

    fn named(&self, what: &[u8]) -> Vec<u8> {
        [&self.prefix, what].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn tag(scope: &str) -> ScopeTag {
        ScopeTag::of(&Scope::parse(scope).unwrap())
    }

    #[test]
    fn a_record_key_is_28_bytes_and_parses() {
        let space = Keyspace::new("ow").unwrap();
        let key = Key::from_bytes(*b"0123456789abcdef");
        let name = space.record(tag("billing"), &key);
        assert_eq!(name.len(), 28);
        assert_eq!(space.parse(tag("billing"), &name), Some(key));
        assert_eq!(space.parse(tag("audit"), &name), None);
        assert_eq!(space.parse(tag("billing"), &name[1..]), None);
        assert_eq!(space.parse(tag("billing"), b"short"), None);
        assert_eq!(space.parse(tag("billing"), &space.wait(0x80)), None);
    }

    /// Golden vectors: a changed name would make every stored key unknown.
    #[test]
    fn the_names_stay_as_they_are() {
        let space = Keyspace::new("ow").unwrap();
        let name = space.record(tag("billing"), &Key::from_bytes([0xfe; 16]));
        assert_eq!(&name[..6], b"ow:{\xfa}");
        assert_eq!(tag("billing").0, [0xa5, 0x60, 0xd2, 0x38, 0x3e, 0xfb]);
        assert_eq!(space.format(), b"ow:!format");
    }

    #[test]
    fn buckets_are_shared_out_evenly() {
        let slots: HashSet<u32> =
            (0..=255).map(|byte| slot(Keyspace::bucket(&Key::from_bytes([byte; 16])))).collect();
        assert_eq!(slots.len(), 64);
        for nodes in 1..=16 {
            let share = |node| slots.iter().filter(|slot| **slot * nodes / 16_384 == node).count();
            let shares: Vec<usize> = (0..nodes).map(share).collect();
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 2, "{nodes} nodes have {shares:?} of 64 buckets");
        }
    }

    /// CRC16 (XMODEM) of one byte, modulo the slots.
    fn slot(byte: u8) -> u32 {
        let mut crc = u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
        }
        u32::from(crc) % 16_384
    }

    #[test]
    fn patterns_escape_wildcards() {
        let space = Keyspace::new("ow").unwrap();
        let pattern = space.pattern(ScopeTag(*b"a*?[\\]"));
        assert_eq!(pattern, b"ow:{?}a\\*\\?\\[\\\\\\]*");
    }

    #[test]
    fn a_prefix_is_plain_text() {
        for wrong in ["", "a b", "a{b}", "a*", "é", &"x".repeat(65)] {
            assert!(Keyspace::new(wrong).is_err(), "{wrong:?}");
        }
        assert!(Keyspace::new("onceward:prod-1_eu.west").is_ok());
    }
}
