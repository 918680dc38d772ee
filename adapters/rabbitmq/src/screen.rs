//! Looks at what the broker sends before the AMQP library does, and mends what that library cannot read: [`Screen`].
//!
//! Any producer can set a message id that is not UTF-8, or nest header tables thousands deep. The library ends the
//! connection at the one and overflows its stack, aborting the process, at the other, and the message comes again to the
//! next worker. So such bytes are replaced in place, by others of the same length that can be read, and the delivery is
//! marked with its defect: the message goes to the dead letters, its neighbours go on.
//!
//! The library also logs each message that the broker returns, whole: so their content is taken out before it sees them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use onceward::dead_letter::HEADER_ID;

use crate::properties;

/// Tables and arrays within tables and arrays, at most. RabbitMQ's own headers (`x-death`) nest two deep.
pub(crate) const MAX_DEPTH: usize = 32;
/// No broker sends larger frames for headers; it would have to be configured to.
const MAX_FRAME_BYTES: usize = 16 << 20;
const READ_BYTES: usize = 64 << 10;

/// What was mended, by channel and delivery tag, until the delivery is taken.
#[derive(Debug, Default)]
pub(crate) struct Mended {
    count: AtomicUsize,
    defects: Mutex<HashMap<(u16, u64), &'static str>>,
}

impl Mended {
    fn note(&self, channel: u16, tag: u64, defect: &'static str) {
        let mut defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        defects.entry((channel, tag)).or_insert(defect);
        self.count.store(defects.len(), Ordering::Release);
    }

    /// What was wrong with a delivery, if anything.
    pub(crate) fn take(&self, channel: u16, tag: u64) -> Option<&'static str> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        let defect = defects.remove(&(channel, tag));
        self.count.store(defects.len(), Ordering::Release);
        defect
    }

    /// Forgets a channel that ended: its number and its tags are used again.
    pub(crate) fn forget(&self, channel: u16) {
        let mut defects = self.defects.lock().unwrap_or_else(PoisonError::into_inner);
        defects.retain(|(own, _), _| *own != channel);
        self.count.store(defects.len(), Ordering::Release);
    }
}

/// The bytes of one connection, from the socket to the library.
#[derive(Debug)]
pub(crate) struct Screen {
    buffer: Vec<u8>,
    /// `buffer[given..vetted]` may be handed over, `buffer[vetted..filled]` must be looked at.
    given: usize,
    vetted: usize,
    filled: usize,
    /// Bytes still to come of a frame that need not be looked at.
    passing: usize,
    /// Bytes still to come of a frame that is not handed over.
    cutting: usize,
    /// The delivery whose content comes next, by channel.
    delivering: HashMap<u16, u64>,
    /// Channels on which the content of a returned message comes next.
    returning: HashSet<u16>,
    /// How many bytes of it are still to come.
    cut: HashMap<u16, u64>,
    mended: Arc<Mended>,
}

impl Screen {
    pub(crate) fn new(mended: Arc<Mended>) -> Self {
        Self {
            buffer: Vec::new(),
            given: 0,
            vetted: 0,
            filled: 0,
            passing: 0,
            cutting: 0,
            delivering: HashMap::new(),
            returning: HashSet::new(),
            cut: HashMap::new(),
            mended,
        }
    }

    /// Hands over bytes that were looked at; 0 if there are none.
    pub(crate) fn take(&mut self, out: &mut [u8]) -> usize {
        let bytes = out.len().min(self.vetted - self.given);
        out[..bytes].copy_from_slice(&self.buffer[self.given..self.given + bytes]);
        self.given += bytes;
        bytes
    }

    /// Room for what comes from the socket.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.given > 0 {
            self.buffer.copy_within(self.given..self.filled, 0);
            self.vetted -= self.given;
            self.filled -= self.given;
            self.given = 0;
        }
        if self.buffer.len() < self.filled + READ_BYTES {
            self.buffer.resize(self.filled + READ_BYTES, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// Looks at `bytes` more bytes that were put into the room.
    ///
    /// # Errors
    /// The bytes are not AMQP.
    pub(crate) fn filled(&mut self, bytes: usize) -> io::Result<()> {
        self.filled += bytes;
        loop {
            let pass = self.passing.min(self.filled - self.vetted);
            self.vetted += pass;
            self.passing -= pass;
            let cut = self.cutting.min(self.filled - self.vetted);
            if cut > 0 {
                self.buffer.copy_within(self.vetted + cut..self.filled, self.vetted);
                self.filled -= cut;
                self.cutting -= cut;
            }
            let Some(&[kind, c1, c0, s3, s2, s1, s0]) = self.buffer[self.vetted..self.filled].first_chunk()
            else {
                return Ok(());
            };
            let channel = u16::from_be_bytes([c1, c0]);
            let size = u32::from_be_bytes([s3, s2, s1, s0]) as usize;
            match kind {
                frame::METHOD | frame::HEADER => {
                    if size > MAX_FRAME_BYTES {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too large"));
                    }
                    let start = self.vetted + frame::HEAD;
                    if self.filled < start + size + frame::END {
                        return Ok(());
                    }
                    self.look(kind, channel, start..start + size)?;
                    self.vetted = start + size + frame::END;
                }
                frame::BODY if self.cut.contains_key(&channel) => {
                    self.cutting = frame::HEAD + size + frame::END;
                    if let Some(left) = self.cut.get_mut(&channel) {
                        *left = left.saturating_sub(size as u64);
                        if *left == 0 {
                            self.cut.remove(&channel);
                        }
                    }
                }
                // A broker that does not speak our version answers with its protocol header and closes.
                b'A' => self.passing = usize::MAX,
                _ => self.passing = frame::HEAD + size + frame::END,
            }
        }
    }

    fn look(&mut self, kind: u8, channel: u16, range: std::ops::Range<usize>) -> io::Result<()> {
        let payload = &mut self.buffer[range];
        let defect = if kind == frame::HEADER {
            let defect =
                properties::mend(payload).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
            if self.returning.remove(&channel)
                && let Some(size @ 1..) = properties::blank_returned(payload, HEADER_ID.as_bytes())
            {
                self.cut.insert(channel, size);
            }
            defect
        } else if payload.starts_with(&frame::BASIC_RETURN) {
            self.returning.insert(channel);
            None
        } else if payload.starts_with(&frame::BASIC_DELIVER) {
            let Some((tag, defect)) = properties::mend_deliver(&mut payload[4..]) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a delivery cannot be read"));
            };
            self.delivering.insert(channel, tag);
            defect
        } else {
            None
        };
        if let (Some(defect), Some(tag)) = (defect, self.delivering.get(&channel)) {
            self.mended.note(channel, *tag, defect);
        }
        Ok(())
    }
}

/// Parts of AMQP 0-9-1 frames.
mod frame {
    pub(super) const METHOD: u8 = 1;
    pub(super) const HEADER: u8 = 2;
    pub(super) const BODY: u8 = 3;
    /// Type, channel and size.
    pub(super) const HEAD: usize = 7;
    pub(super) const END: usize = 1;
    pub(super) const BASIC_RETURN: [u8; 4] = [0, 60, 0, 50];
    pub(super) const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend(channel.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes.push(0xce);
        bytes
    }

    fn deliver(channel: u16, tag: u64, routing_key: &[u8]) -> Vec<u8> {
        let mut payload = frame::BASIC_DELIVER.to_vec();
        payload.extend(b"\x01c");
        payload.extend(tag.to_be_bytes());
        payload.extend(b"\x00\x00");
        payload.push(routing_key.len() as u8);
        payload.extend(routing_key);
        frame(frame::METHOD, channel, &payload)
    }

    /// A content header with only a message id.
    fn header(channel: u16, id: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0];
        payload.extend(3_u64.to_be_bytes());
        payload.extend((1_u16 << 7).to_be_bytes());
        payload.push(id.len() as u8);
        payload.extend(id);
        frame(frame::HEADER, channel, &payload)
    }

    fn through(bytes: &[u8], pieces: &[usize]) -> (Vec<u8>, Arc<Mended>) {
        let mended = Arc::new(Mended::default());
        let mut screen = Screen::new(Arc::clone(&mended));
        let (mut rest, mut out) = (bytes, Vec::new());
        let mut sizes = pieces.iter().cycle();
        while !rest.is_empty() {
            let room = screen.room();
            let size = (*sizes.next().unwrap()).min(rest.len()).min(room.len());
            room[..size].copy_from_slice(&rest[..size]);
            rest = &rest[size..];
            screen.filled(size).unwrap();
            let mut piece = [0; 50];
            loop {
                match screen.take(&mut piece) {
                    0 => break,
                    taken => out.extend(&piece[..taken]),
                }
            }
        }
        (out, mended)
    }

    #[test]
    fn what_cannot_be_read_is_replaced_and_marked_on_its_own_delivery() {
        let bytes = |id: &[u8], key: &[u8]| {
            [
                deliver(1, 7, b"k"),
                header(1, b"good"),
                frame(3, 1, b"\xff\xfe\xfd"),
                deliver(2, 7, key),
                header(2, id),
            ]
            .concat()
        };
        let (out, mended) = through(&bytes(b"a\xff\xfeb", b"k\xff"), &[1000]);
        assert_eq!(out, bytes(b"a??b", b"k?"));
        assert_eq!(mended.take(1, 7), None);
        assert_eq!(mended.take(2, 7), Some("the routing key is not UTF-8"));
        assert_eq!(mended.take(2, 7), None);
        let (_, mended) = through(&bytes(b"\xff", b"k"), &[1000]);
        assert_eq!(mended.take(2, 7), Some("the message id is not UTF-8"));
    }

    #[test]
    fn the_content_of_a_returned_message_is_not_handed_over() {
        let returned = frame(frame::METHOD, 1, &frame::BASIC_RETURN);
        let mut head = header(1, b"id");
        let before = [returned.clone(), head.clone(), frame(3, 2, b"another's")].concat();
        let body = [frame(3, 1, b"a"), frame(3, 1, b"bc")].concat();
        let bytes = [before, body, deliver(1, 1, b"k"), header(1, b"n"), frame(3, 1, b"abc")].concat();
        // Of three bytes there are none left, in the frame's head and its payload's first words.
        head[7 + 4..7 + 12].fill(0);
        let expected = [
            returned,
            head,
            frame(3, 2, b"another's"),
            deliver(1, 1, b"k"),
            header(1, b"n"),
            frame(3, 1, b"abc"),
        ];
        for pieces in [&[1000][..], &[1], &[3, 7, 11]] {
            assert_eq!(through(&bytes, pieces).0, expected.concat(), "{pieces:?}");
        }
    }

    #[test]
    fn a_channel_that_ended_leaves_nothing_behind() {
        let (_, mended) = through(&[deliver(1, 7, b"\xff"), deliver(2, 7, b"\xff")].concat(), &[1000]);
        mended.forget(1);
        assert_eq!(mended.take(1, 7), None);
        assert!(mended.take(2, 7).is_some());
    }

    #[test]
    fn what_is_no_amqp_is_an_error_or_passes() {
        let mut screen = Screen::new(Arc::default());
        let large = [&[frame::HEADER, 0, 1][..], &[0xff; 4]].concat();
        screen.room()[..7].copy_from_slice(&large);
        assert!(screen.filled(7).is_err());
        assert_eq!(through(b"AMQP\x00\x00\x09\x01 whatever", &[3]).0, b"AMQP\x00\x00\x09\x01 whatever");
    }

    proptest! {
        #[test]
        fn frames_pass_whole_however_they_are_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20),
            pieces in prop::collection::vec(1_usize..200, 1..20),
        ) {
            let mut bytes = Vec::new();
            for (tag, body) in bodies.iter().enumerate() {
                bytes.extend(deliver(3, tag as u64, b"key"));
                bytes.extend(header(3, b"id"));
                bytes.extend(frame(3, 3, body));
                bytes.extend(frame(8, 0, b""));
            }
            let (out, mended) = through(&bytes, &pieces);
            prop_assert_eq!(out, bytes);
            prop_assert_eq!(mended.count.load(Ordering::Acquire), 0);
        }
    }
}
