//! Canonical form of JSON: texts with the same meaning get the same bytes, so that a re-serialised message is a copy.
//!
//! Whitespace, the order of members, escapes and the notation of numbers do not matter: `{"a": 1.0, "b": "\u00e9"}` and
//! `{"b":"é","a":1}` are one. As in RFC 8785, but numbers keep all their digits instead of becoming floating point, in which
//! large ids that differ would be equal.
//!
//! No canonical form: what is no JSON object or array (a text or a number alone is compared as bytes), objects that name a
//! member twice, more than 128 levels, and exponents beyond 64 bits.

mod members;
mod numbers;
mod strings;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use members::Member;

const MOST_LEVELS: usize = 128;

/// Calls `with` with the canonical form of `text`, if that is a JSON object or array and has one.
pub(super) fn with_document<T>(text: &[u8], with: impl FnOnce(&[u8]) -> T) -> Option<T> {
    let first = text.iter().find(|byte| !is_space(**byte))?;
    if !matches!(first, b'{' | b'[') {
        return None;
    }
    with_value(text, with)
}

/// As [`with_document`], for any JSON value.
pub(super) fn with_value<T>(text: &[u8], with: impl FnOnce(&[u8]) -> T) -> Option<T> {
    thread_local! {
        static WRITER: RefCell<Buffers> = RefCell::default();
    }
    let text = std::str::from_utf8(text).ok()?;
    WRITER.with_borrow_mut(|buffers| {
        let form = write(text.as_bytes(), buffers).map(|()| with(&buffers.out));
        buffers.shrink();
        form
    })
}

/// How many bytes of memory the canonical form of a text of `bytes` may need while it is made, in the worst of usual cases:
/// the form itself, 8 bytes for each member of an object that is out of order, and that object once more. Nearly a fourfold
/// for an object of short members out of order, a onefold for one in order; more only where most of the text is control
/// characters, which are written longer.
pub(crate) const fn memory(bytes: usize) -> usize {
    bytes.saturating_mul(4)
}

fn write(text: &[u8], buffers: &mut Buffers) -> Option<()> {
    buffers.out.clear();
    // Growing by doubling would take up to twice as much.
    buffers.out.reserve_exact(text.len());
    let mut reader = JsonReader { text, at: 0, buffers };
    reader.value(0)?;
    reader.spaces();
    (reader.at == text.len()).then_some(())
}

#[derive(Default)]
struct Buffers {
    /// The canonical form so far.
    out: Vec<u8>,
    /// For putting members in order.
    members: Vec<Member>,
    sorted: Vec<u8>,
}

impl Buffers {
    /// A large message must not keep its memory forever, nor must one without a canonical form.
    fn shrink(&mut self) {
        const KEPT: usize = 64 << 10;
        self.out.clear();
        self.out.shrink_to(KEPT);
        self.sorted.clear();
        self.sorted.shrink_to(KEPT);
        self.members.clear();
        self.members.shrink_to(KEPT / size_of::<Member>());
    }
}

struct JsonReader<'t> {
    text: &'t [u8],
    at: usize,
    buffers: &'t mut Buffers,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Every step is `None` where the text is not JSON or has no canonical form.
impl JsonReader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn spaces(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    /// Skips spaces and takes `byte`, if it is next.
    fn takes(&mut self, byte: u8) -> bool {
        self.spaces();
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn push(&mut self, bytes: &[u8]) {
        self.buffers.out.extend_from_slice(bytes);
    }

    fn value(&mut self, level: usize) -> Option<()> {
        if level > MOST_LEVELS {
            return None;
        }
        self.spaces();
        match self.peek()? {
            b'{' => self.object(level),
            b'[' => self.array(level),
            b'"' => self.string(),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => self.number(),
        }
    }

    fn literal(&mut self, literal: &[u8]) -> Option<()> {
        if !self.text[self.at..].starts_with(literal) {
            return None;
        }
        self.at += literal.len();
        self.push(literal);
        Some(())
    }

    fn array(&mut self, level: usize) -> Option<()> {
        self.at += 1;
        self.push(b"[");
        if !self.takes(b']') {
            loop {
                self.value(level + 1)?;
                if self.takes(b']') {
                    break;
                }
                if !self.takes(b',') {
                    return None;
                }
                self.push(b",");
            }
        }
        self.push(b"]");
        Some(())
    }

    fn object(&mut self, level: usize) -> Option<()> {
        self.at += 1;
        self.push(b"{");
        let first = self.buffers.out.len();
        // The position of the previous name; the number of names.
        let (mut last, mut count, mut in_order) = (first..first, 0, true);
        if !self.takes(b'}') {
            loop {
                let start = self.buffers.out.len();
                self.spaces();
                if self.peek() != Some(b'"') {
                    return None;
                }
                self.string()?;
                let name = start..self.buffers.out.len();
                let out = &self.buffers.out;
                in_order &= count == 0 || out[last] < out[name.clone()];
                (last, count) = (name, count + 1);
                if !self.takes(b':') {
                    return None;
                }
                self.push(b":");
                self.value(level + 1)?;
                // The comma belongs to the member, so that members can change places.
                self.push(b",");
                if self.takes(b'}') {
                    break;
                }
                if !self.takes(b',') {
                    return None;
                }
            }
        }
        if !in_order {
            let Buffers { out, members, sorted } = &mut *self.buffers;
            members::sort(out, first, count, members, sorted)?;
        }
        self.push(b"}");
        Some(())
    }
}
