//! The bytes that a store keeps with a completion: the handler's result, and the [`TraceContext`] of its run if that is kept.
//!
//! ```text
//! result                                   a result alone, as it is
//! MAGIC 1 flags [trace] [span] [result]    anything else: 1 is the version; trace 16 bytes, span 8 bytes, big-endian
//! ```

use std::fmt;
use std::num::NonZeroU64;

use bytes::Bytes;

/// No result begins like this but for those written by this module.
const MAGIC: &[u8; 8] = b"\0ow-kept";
const VERSION: u8 = 1;
const HEAD: usize = MAGIC.len() + 2;
const HAS_TRACE: u8 = 1;
const HAS_RESULT: u8 = 2;

/// A span and its trace, by the ids that W3C Trace Context gives them. Neither id is zero.
///
/// ```
/// use onceward::store::TraceContext;
///
/// let context = TraceContext::new(0x0af7651916cd43dd8448eb211c80319c, 0xb7ad6b7169203331).unwrap();
/// assert_eq!(context.trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
/// assert_eq!(context.span_id_hex(), "b7ad6b7169203331");
/// assert_eq!(TraceContext::new(0, 1), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// In halves: a number of 128 bits would be aligned to as many, and widen each completion.
    trace_id: [u64; 2],
    span_id: NonZeroU64,
}

impl TraceContext {
    /// The context of these ids; `None` if one is zero, which identifies nothing.
    pub const fn new(trace_id: u128, span_id: u64) -> Option<Self> {
        match NonZeroU64::new(span_id) {
            Some(span_id) if trace_id != 0 => {
                Some(Self { trace_id: [(trace_id >> 64) as u64, trace_id as u64], span_id })
            }
            _ => None,
        }
    }

    /// The id of the trace.
    pub const fn trace_id(self) -> u128 {
        ((self.trace_id[0] as u128) << 64) | self.trace_id[1] as u128
    }

    /// The id of the span.
    pub const fn span_id(self) -> u64 {
        self.span_id.get()
    }

    /// The id of the trace, in 32 hexadecimal digits.
    pub fn trace_id_hex(self) -> String {
        format!("{:032x}", self.trace_id())
    }

    /// The id of the span, in 16 hexadecimal digits.
    pub fn span_id_hex(self) -> String {
        format!("{:016x}", self.span_id)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceContext({:032x}, {:016x})", self.trace_id(), self.span_id)
    }
}

/// The bytes to store for `result` and `trace`; `None` if there is neither.
pub(super) fn stored(result: Option<&Bytes>, trace: Option<TraceContext>) -> Option<Bytes> {
    match (result, trace) {
        (None, None) => None,
        (Some(result), None) if !result.starts_with(MAGIC) => Some(result.clone()),
        _ => {
            let mut bytes = Vec::with_capacity(StoredResult::MAX_HEAD + result.map_or(0, Bytes::len));
            bytes.extend_from_slice(MAGIC);
            let has_trace = if trace.is_some() { HAS_TRACE } else { 0 };
            let has_result = if result.is_some() { HAS_RESULT } else { 0 };
            bytes.extend_from_slice(&[VERSION, has_trace | has_result]);
            if let Some(trace) = trace {
                bytes.extend_from_slice(&trace.trace_id().to_be_bytes());
                bytes.extend_from_slice(&trace.span_id().to_be_bytes());
            }
            bytes.extend_from_slice(result.map_or(&[], |result| result));
            Some(bytes.into())
        }
    }
}

/// What the bytes consist of that a store keeps with a completion. Stores that answer with the whole of them use
/// [`Claim::completed`](super::Claim::completed) and [`Record::view`](super::transition::Record::view) instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredResult {
    /// The run that completed the key.
    pub trace: Option<TraceContext>,
    /// How many bytes precede the result; `None` without a result.
    result_at: Option<usize>,
}

impl StoredResult {
    /// [`of`](Self::of) needs no more than so many bytes.
    pub const MAX_HEAD: usize = HEAD + 24;

    /// What bytes consist of that begin with `head`. Bytes of a later version have neither result nor trace.
    pub fn of(head: &[u8]) -> Self {
        let Some(rest) = head.strip_prefix(MAGIC) else {
            return Self { trace: None, result_at: Some(0) };
        };
        let unreadable = Self { trace: None, result_at: None };
        let Some((&[version, flags], rest)) = rest.split_first_chunk() else { return unreadable };
        if version != VERSION {
            return unreadable;
        }
        let (trace, at) = match flags & HAS_TRACE {
            0 => (None, HEAD),
            _ => match ids(rest) {
                Some((trace_id, span_id)) => (TraceContext::new(trace_id, span_id), Self::MAX_HEAD),
                None => return unreadable,
            },
        };
        Self { trace, result_at: (flags & HAS_RESULT != 0).then_some(at) }
    }

    /// The size of the result, where `stored` bytes are stored.
    pub fn result_bytes(self, stored: usize) -> Option<usize> {
        self.result_at.map(|at| stored.saturating_sub(at))
    }

    /// The result in the bytes that this was read from.
    pub(super) fn result(self, stored: &Bytes) -> Option<Bytes> {
        self.result_at.map(|at| stored.slice(at.min(stored.len())..))
    }
}

fn ids(bytes: &[u8]) -> Option<(u128, u64)> {
    let (trace_id, rest) = bytes.split_first_chunk()?;
    let (span_id, _) = rest.split_first_chunk()?;
    Some((u128::from_be_bytes(*trace_id), u64::from_be_bytes(*span_id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Option<TraceContext> =
        TraceContext::new(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331);

    fn read(stored: &Bytes) -> (Option<Bytes>, Option<TraceContext>) {
        let head = StoredResult::of(&stored[..stored.len().min(StoredResult::MAX_HEAD)]);
        let result = head.result(stored);
        assert_eq!(head.result_bytes(stored.len()), result.as_ref().map(Bytes::len));
        (result, head.trace)
    }

    #[test]
    fn what_was_stored_is_read_back() {
        let results = [None, Some(&b""[..]), Some(b"done"), Some(MAGIC), Some(b"\0ow-kept\x01\x03 and more")];
        for result in results.map(|result| result.map(Bytes::from_static)) {
            for trace in [None, RUN] {
                match stored(result.as_ref(), trace) {
                    Some(bytes) => assert_eq!(read(&bytes), (result.clone(), trace)),
                    None => assert_eq!((&result, trace), (&None, None)),
                }
            }
        }
    }

    /// Golden vectors: records that were written are read by every later version.
    #[test]
    fn the_format_stays_as_it_is() {
        let done = Bytes::from_static(b"done");
        assert_eq!(stored(Some(&done), None).unwrap(), done, "as the versions before traces wrote it");
        let with_trace = b"\0ow-kept\x01\x03\x0a\xf7\x65\x19\x16\xcd\x43\xdd\x84\x48\xeb\x21\x1c\x80\x31\x9c\
            \xb7\xad\x6b\x71\x69\x20\x33\x31done";
        assert_eq!(stored(Some(&done), RUN).unwrap(), &with_trace[..]);
        let trace_alone = stored(None, RUN).unwrap();
        assert_eq!(trace_alone, &[&b"\0ow-kept\x01\x01"[..], &with_trace[10..34]].concat()[..]);
        assert_eq!(trace_alone.len(), StoredResult::MAX_HEAD);
    }

    #[test]
    fn bytes_of_a_later_version_and_damaged_ones_are_no_result() {
        for bytes in
            [&b"\0ow-kept\x02\x03anything"[..], b"\0ow-kept", b"\0ow-kept\x01", b"\0ow-kept\x01\x01short"]
        {
            assert_eq!(read(&Bytes::from_static(bytes)), (None, None), "{bytes:?}");
        }
        let zeros = [&b"\0ow-kept\x01\x03"[..], &[0; 24], b"done"].concat();
        assert_eq!(read(&zeros.into()), (Some(Bytes::from_static(b"done")), None));
    }
}
