//! Looks at what the broker sends before the AMQP library does, and mends what that library cannot read: [`Screen`].
//!
//! Any producer can set a message id that is not UTF-8, or nest header tables thousands deep. The library ends the
//! connection at the one and overflows its stack, aborting the process, at the other, and the message comes again to the
//! next worker. So such bytes are replaced in place, by others of the same length that can be read, and the delivery is
//! marked with its defect: the message goes to the dead letters, its neighbours go on.
//!
//! What no broker sends ends the connection before the library would collect it without end: see [`Sequence`].
//!
//! The library also logs each message that the broker returns, whole: so their content is taken out before it sees them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use onceward::dead_letter::HEADER_ID;

use crate::mended::Mended;
use crate::properties;
use crate::sequence::{self, Sequence};

/// Tables and arrays within tables and arrays, at most. RabbitMQ's own headers (`x-death`) nest two deep.
pub(crate) const MAX_DEPTH: usize = 32;
/// The largest header frame that is cut down; producers of a broker without limits may send such.
const MAX_FRAME_BYTES: usize = 16 << 20;
const READ_BYTES: usize = 64 << 10;
const LARGE: &str = "its headers are larger than a frame of the connection (frame_max)";

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
    sequence: Sequence,
    /// The delivery whose content comes next and how many have come, by channel.
    delivering: HashMap<u16, (u64, u64)>,
    /// Channels on which the content of a returned message comes next.
    returning: HashSet<u16>,
    /// How many bytes of it are still to come.
    cut: HashMap<u16, u64>,
    mended: Arc<Mended>,
}

impl Screen {
    /// For a connection that asks for frames of at most `frame_max` bytes.
    pub(crate) fn new(mended: Arc<Mended>, frame_max: usize) -> Self {
        Self {
            sequence: Sequence::new(frame_max),
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
            let whole = frame::HEAD + size + frame::END;
            let is_large = whole > self.sequence.frame_max();
            match kind {
                frame::HEADER if is_large && size <= MAX_FRAME_BYTES => {
                    if !self.cut_down(channel, whole)? {
                        return Ok(());
                    }
                }
                frame::METHOD | frame::HEADER | frame::BODY if is_large => return Err(large()),
                frame::METHOD | frame::HEADER => {
                    let start = self.vetted + frame::HEAD;
                    if self.filled < self.vetted + whole {
                        return Ok(());
                    }
                    self.look(kind, channel, start..start + size, None)?;
                    self.vetted += whole;
                }
                frame::BODY => {
                    self.sequence.body(channel, size).map_err(refused)?;
                    if let Some(left) = self.cut.get_mut(&channel) {
                        self.cutting = whole;
                        *left = left.saturating_sub(size as u64);
                        if *left == 0 {
                            self.cut.remove(&channel);
                        }
                    } else {
                        self.passing = whole;
                    }
                }
                // A broker that does not speak our version answers with its protocol header and closes.
                b'A' => self.passing = usize::MAX,
                _ if is_large => return Err(large()),
                _ => self.passing = whole,
            }
        }
    }

    /// Leaves of a header frame of `whole` bytes only the size of the content. False: it has not come so far.
    fn cut_down(&mut self, channel: u16, whole: usize) -> io::Result<bool> {
        const KEPT: usize = frame::HEAD + 14 + frame::END;
        let Some(kept) = self.buffer[self.vetted..self.filled].first_chunk_mut::<KEPT>() else {
            return Ok(false);
        };
        kept[3..frame::HEAD].copy_from_slice(&14_u32.to_be_bytes());
        kept[frame::HEAD + 12..].copy_from_slice(&[0, 0, frame::MARK]);
        let start = self.vetted + frame::HEAD;
        self.look(frame::HEADER, channel, start..start + 14, Some(LARGE))?;
        self.vetted += KEPT;
        self.cutting = whole - KEPT;
        Ok(true)
    }

    fn look(
        &mut self,
        kind: u8,
        channel: u16,
        range: std::ops::Range<usize>,
        defect: Option<&'static str>,
    ) -> io::Result<()> {
        let payload = &mut self.buffer[range.clone()];
        if kind == frame::METHOD {
            return match self.sequence.method(channel, payload).map_err(refused)? {
                sequence::RETURN => {
                    self.returning.insert(channel);
                    Ok(())
                }
                sequence::DELIVER => self.delivered(channel, range.start + 4..range.end),
                (20, 11) => {
                    self.delivering.remove(&channel);
                    Ok(())
                }
                _ => Ok(()),
            };
        }
        self.sequence.header(channel, payload).map_err(refused)?;
        let defect = defect.or(properties::mend(payload).map_err(refused)?);
        if self.returning.remove(&channel) {
            self.sequence.returned(payload.len()).map_err(refused)?;
            if let Some(size @ 1..) = properties::blank_returned(payload, HEADER_ID.as_bytes()) {
                self.cut.insert(channel, size);
            }
        } else if let (Some(defect), Some((tag, _))) = (defect, self.delivering.get(&channel)) {
            self.mended.note(channel, *tag, defect);
        }
        Ok(())
    }

    fn delivered(&mut self, channel: u16, range: std::ops::Range<usize>) -> io::Result<()> {
        let (tag, defect) = properties::mend_deliver(&mut self.buffer[range])
            .ok_or_else(|| refused("a delivery that cannot be read"))?;
        let (last, deliveries) = self.delivering.entry(channel).or_default();
        (*last, *deliveries) = (tag, *deliveries + 1);
        if !self.mended.may_have_come(channel, *deliveries) {
            return Err(refused("many more deliveries than the prefetch allows"));
        }
        if let Some(defect) = defect {
            self.mended.note(channel, tag, defect);
        }
        Ok(())
    }
}

/// An error for what no broker sends.
fn refused(what: &'static str) -> io::Error {
    let what = format!("the broker sent {what}; check that it is RabbitMQ and that nobody is in between");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn large() -> io::Error {
    refused("a frame that is longer than agreed (frame_max)")
}

/// Parts of AMQP 0-9-1 frames.
mod frame {
    pub(super) const METHOD: u8 = 1;
    pub(super) const HEADER: u8 = 2;
    pub(super) const BODY: u8 = 3;
    /// Type, channel and size.
    pub(super) const HEAD: usize = 7;
    pub(super) const END: usize = 1;
    /// The byte at the end.
    pub(super) const MARK: u8 = 0xce;
}

#[cfg(test)]
mod tests;
