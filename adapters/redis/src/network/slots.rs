//! Hash slots of a cluster: the slot of a key, and the owners of slots: [`SlotMap`].

use redis::Value;

use crate::network::node::ClusterNode;

/// Ranges of slots, inclusive, and their primaries.
pub(crate) type SlotMap = Vec<(u16, u16, ClusterNode)>;

/// The slot of a key: CRC16 (XMODEM) of its hash tag, which is the text between its first braces, or else of the whole key.
pub(crate) fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let inner = &key[open + 1..];
        let length = inner.iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &inner[..length])
    });
    let mut crc = 0_u16;
    for byte in tag.unwrap_or(key) {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
        }
    }
    crc % 16_384
}

/// Parses the reply of `CLUSTER SLOTS`: ranges, each with its primary first. A node that does not know its own host leaves
/// it empty: then it is the host of `asked`. `None` if the reply has another form.
pub(crate) fn parse_slots(reply: Value, asked: &ClusterNode) -> Option<SlotMap> {
    let Value::Array(ranges) = reply else { return None };
    ranges
        .into_iter()
        .map(|range| {
            let Value::Array(range) = range else { return None };
            let mut range = range.into_iter();
            let first: u16 = redis::from_redis_value(range.next()?).ok()?;
            let last: u16 = redis::from_redis_value(range.next()?).ok()?;
            let Value::Array(primary) = range.next()? else { return None };
            let mut primary = primary.into_iter();
            let host: Option<String> = redis::from_redis_value(primary.next()?).ok()?;
            let port: u16 = redis::from_redis_value(primary.next()?).ok()?;
            let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| asked.host.clone());
            Some((first, last, ClusterNode { host, port }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // From the cluster specification and a server's CLUSTER KEYSLOT.
        assert_eq!(slot_of(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"{user1000}.followers"));
        assert_eq!(slot_of(b"foo{}{bar}"), slot_of(b"foo{}{bar}"));
        assert_ne!(slot_of(b"foo{}{bar}"), slot_of(b"bar"));
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
    }
}
