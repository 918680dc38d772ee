//! Sanitises the inbound byte stream of one connection, frame by frame: [`Sanitizer`].

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use onceward::dead_letter::HEADER_ID;

use crate::sanitize::defects::Defects;
use crate::sanitize::frame_order::{self, FrameOrder};
use crate::sanitize::properties;

/// The largest oversize header frame that is truncated; a broker without a frame limit forwards such frames.
const MAX_FRAME_BYTES: usize = 16 << 20;
const READ_BYTES: usize = 64 << 10;
const OVERSIZE_HEADERS: &str = "its headers are larger than a frame of the connection (frame_max)";

/// The inbound bytes of one connection, on their way from the socket to the library.
#[derive(Debug)]
pub(crate) struct Sanitizer {
    buffer: Vec<u8>,
    /// `buffer[given..vetted]` is ready for the library, `buffer[vetted..filled]` is not checked yet.
    given: usize,
    vetted: usize,
    filled: usize,
    /// Bytes of the current frame that still pass unchecked.
    passing: usize,
    /// Bytes of the current frame that are still to be dropped.
    dropping: usize,
    frame_order: FrameOrder,
    /// By channel: the tag of the last delivery, whose content comes next, and the number of deliveries.
    delivering: HashMap<u16, (u64, u64)>,
    /// Channels on which the content of a returned message comes next.
    returning: HashSet<u16>,
    /// Content bytes of returned messages that are still to be dropped, by channel.
    dropped_content: HashMap<u16, u64>,
    defects: Arc<Defects>,
}

impl Sanitizer {
    /// For a connection that negotiates frames of at most `frame_max` bytes.
    pub(crate) fn new(defects: Arc<Defects>, frame_max: usize) -> Self {
        Self {
            frame_order: FrameOrder::new(frame_max),
            buffer: Vec::new(),
            given: 0,
            vetted: 0,
            filled: 0,
            passing: 0,
            dropping: 0,
            delivering: HashMap::new(),
            returning: HashSet::new(),
            dropped_content: HashMap::new(),
            defects,
        }
    }

    /// Copies checked bytes to `out`; returns their number, 0 if no bytes are ready.
    pub(crate) fn take(&mut self, out: &mut [u8]) -> usize {
        let bytes = out.len().min(self.vetted - self.given);
        out[..bytes].copy_from_slice(&self.buffer[self.given..self.given + bytes]);
        self.given += bytes;
        bytes
    }

    /// Returns free buffer space for bytes from the socket.
    pub(crate) fn free_space(&mut self) -> &mut [u8] {
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

    /// Checks the next `bytes` bytes, which were written to the free space.
    pub(crate) fn filled(&mut self, bytes: usize) -> io::Result<()> {
        self.filled += bytes;
        loop {
            let pass = self.passing.min(self.filled - self.vetted);
            self.vetted += pass;
            self.passing -= pass;
            let cut = self.dropping.min(self.filled - self.vetted);
            if cut > 0 {
                self.buffer.copy_within(self.vetted + cut..self.filled, self.vetted);
                self.filled -= cut;
                self.dropping -= cut;
            }
            let Some(&[kind, c1, c0, s3, s2, s1, s0]) = self.buffer[self.vetted..self.filled].first_chunk()
            else {
                return Ok(());
            };
            let channel = u16::from_be_bytes([c1, c0]);
            let size = u32::from_be_bytes([s3, s2, s1, s0]) as usize;
            let whole = frame::HEAD + size + frame::END;
            let is_large = whole > self.frame_order.frame_max();
            match kind {
                frame::HEADER if is_large && size <= MAX_FRAME_BYTES => {
                    if !self.truncate_header(channel, whole)? {
                        return Ok(());
                    }
                }
                frame::METHOD | frame::HEADER | frame::BODY if is_large => return Err(oversize_frame_error()),
                frame::METHOD | frame::HEADER => {
                    let start = self.vetted + frame::HEAD;
                    if self.filled < self.vetted + whole {
                        return Ok(());
                    }
                    self.check_frame(kind, channel, start..start + size, None)?;
                    self.vetted += whole;
                }
                frame::BODY => {
                    self.frame_order.body(channel, size).map_err(protocol_error)?;
                    if let Some(left) = self.dropped_content.get_mut(&channel) {
                        self.dropping = whole;
                        *left = left.saturating_sub(size as u64);
                        if *left == 0 {
                            self.dropped_content.remove(&channel);
                        }
                    } else {
                        self.passing = whole;
                    }
                }
                // A broker of another protocol version answers with its protocol header and closes the connection.
                b'A' => self.passing = usize::MAX,
                _ if is_large => return Err(oversize_frame_error()),
                _ => self.passing = whole,
            }
        }
    }

    /// Truncates a header frame of `whole` bytes to the size of its content. Returns false if too few bytes have
    /// arrived.
    fn truncate_header(&mut self, channel: u16, whole: usize) -> io::Result<bool> {
        const KEPT: usize = frame::HEAD + 14 + frame::END;
        let Some(kept) = self.buffer[self.vetted..self.filled].first_chunk_mut::<KEPT>() else {
            return Ok(false);
        };
        kept[3..frame::HEAD].copy_from_slice(&14_u32.to_be_bytes());
        kept[frame::HEAD + 12..].copy_from_slice(&[0, 0, frame::MARK]);
        let start = self.vetted + frame::HEAD;
        self.check_frame(frame::HEADER, channel, start..start + 14, Some(OVERSIZE_HEADERS))?;
        self.vetted += KEPT;
        self.dropping = whole - KEPT;
        Ok(true)
    }

    fn check_frame(
        &mut self,
        kind: u8,
        channel: u16,
        range: std::ops::Range<usize>,
        defect: Option<&'static str>,
    ) -> io::Result<()> {
        let payload = &mut self.buffer[range.clone()];
        if kind == frame::METHOD {
            return match self.frame_order.method(channel, payload).map_err(protocol_error)? {
                frame_order::RETURN => {
                    self.returning.insert(channel);
                    Ok(())
                }
                frame_order::DELIVER => self.sanitize_delivery(channel, range.start + 4..range.end),
                frame_order::GET_OK => self.sanitize_got(channel, range.start + 4..range.end),
                (20, 11) => {
                    self.delivering.remove(&channel);
                    Ok(())
                }
                _ => Ok(()),
            };
        }
        self.frame_order.header(channel, payload).map_err(protocol_error)?;
        let defect = defect.or(properties::sanitize_header(payload).map_err(protocol_error)?);
        if self.returning.remove(&channel) {
            self.frame_order.add_returned(payload.len()).map_err(protocol_error)?;
            if let Some(size @ 1..) = properties::blank_returned(payload, HEADER_ID.as_bytes()) {
                self.dropped_content.insert(channel, size);
            }
        } else if let (Some(defect), Some((tag, _))) = (defect, self.delivering.get(&channel)) {
            self.defects.note(channel, *tag, defect);
        }
        Ok(())
    }

    fn sanitize_delivery(&mut self, channel: u16, range: std::ops::Range<usize>) -> io::Result<()> {
        let (tag, defect) = properties::sanitize_deliver(&mut self.buffer[range])
            .ok_or_else(|| protocol_error("an unreadable delivery"))?;
        let (last, deliveries) = self.delivering.entry(channel).or_default();
        (*last, *deliveries) = (tag, *deliveries + 1);
        if !self.defects.within_limit(channel, *deliveries) {
            return Err(protocol_error("many more deliveries than the prefetch allows"));
        }
        if let Some(defect) = defect {
            self.defects.note(channel, tag, defect);
        }
        Ok(())
    }

    /// As [`sanitize_delivery`](Self::sanitize_delivery), for a message that was asked for.
    fn sanitize_got(&mut self, channel: u16, range: std::ops::Range<usize>) -> io::Result<()> {
        let (tag, defect) = properties::sanitize_get_ok(&mut self.buffer[range])
            .ok_or_else(|| protocol_error("an unreadable message"))?;
        self.delivering.entry(channel).or_default().0 = tag;
        if let Some(defect) = defect {
            self.defects.note(channel, tag, defect);
        }
        Ok(())
    }
}

/// The error for bytes that no broker sends.
fn protocol_error(what: &'static str) -> io::Error {
    let what =
        format!("the broker sent {what}; check that it is RabbitMQ and that no proxy alters the stream");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn oversize_frame_error() -> io::Error {
    protocol_error("a frame longer than the negotiated frame_max")
}

/// Parts of AMQP 0-9-1 frames.
pub(super) mod frame {
    pub(in crate::sanitize) const METHOD: u8 = 1;
    pub(in crate::sanitize) const HEADER: u8 = 2;
    pub(in crate::sanitize) const BODY: u8 = 3;
    /// Length of type, channel and size.
    pub(in crate::sanitize) const HEAD: usize = 7;
    pub(in crate::sanitize) const END: usize = 1;
    /// The end-of-frame byte.
    pub(in crate::sanitize) const MARK: u8 = 0xce;
}
