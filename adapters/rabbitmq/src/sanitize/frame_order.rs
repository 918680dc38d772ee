//! Checks the order of inbound frames and limits what they may make the library buffer: [`FrameOrder`].
//!
//! A broker that follows AMQP never meets these limits. One that does not, or a proxy in between, would make the AMQP
//! library buffer without limit, or recurse until its stack overflows.

use std::collections::HashMap;

use crate::sanitize::properties;

/// RabbitMQ cannot be configured to accept larger messages.
const MAX_MESSAGE_BYTES: u64 = 512 << 20;
/// The most bytes of returned messages between two confirms: their headers, and the overhead of each.
const MAX_RETURNED_BYTES: usize = 256 << 20;
/// The overhead of a returned message, about as much as the AMQP library allocates for an empty one.
const RETURNED_OVERHEAD: usize = 1024;
/// The smallest `frame_max` that AMQP allows.
pub(crate) const MIN_FRAME_MAX: u32 = 4096;

/// Class and method number.
pub(crate) type MethodId = (u16, u16);
pub(crate) const RETURN: MethodId = (60, 50);
pub(crate) const DELIVER: MethodId = (60, 60);
pub(crate) const GET_OK: MethodId = (60, 71);
const START: MethodId = (10, 10);
const TUNE: MethodId = (10, 30);
const CHANNEL: u16 = 20;

/// The frame that must come next on a channel.
#[derive(Debug)]
enum ExpectedFrame {
    Header,
    /// Content frames with this many bytes in total.
    Body(u64),
}

/// Tracks the frames of one connection.
#[derive(Debug)]
pub(crate) struct FrameOrder {
    /// The longest frame in bytes, head and end included.
    frame_max: usize,
    contents: HashMap<u16, ExpectedFrame>,
    returned_header_bytes: usize,
}

impl FrameOrder {
    /// For a connection that negotiates frames of at most `frame_max` bytes.
    pub(crate) fn new(frame_max: usize) -> Self {
        Self { frame_max, contents: HashMap::new(), returned_header_bytes: 0 }
    }

    /// The longest frame in bytes, head and end included: the lower of our limit and the broker's.
    pub(crate) fn frame_max(&self) -> usize {
        self.frame_max
    }

    /// Checks a method frame.
    ///
    /// # Errors
    /// No broker sends this method, or not at this point.
    pub(crate) fn method(&mut self, channel: u16, payload: &mut [u8]) -> Result<MethodId, &'static str> {
        let bytes = payload.len();
        let Some((&mut [c1, c0, m1, m0], arguments)) = payload.split_first_chunk_mut() else {
            return Err("an unreadable method");
        };
        let method = (u16::from_be_bytes([c1, c0]), u16::from_be_bytes([m1, m0]));
        if !is_broker_method(method) {
            return Err("a method that only clients send");
        }
        if method.0 == CHANNEL {
            self.contents.remove(&channel);
        } else if self.contents.contains_key(&channel) {
            return Err("a method in place of a message's content");
        }
        match method {
            START if !properties::is_start_readable(arguments) => {
                return Err("unreadable server properties");
            }
            TUNE => self.tune(arguments)?,
            RETURN => {
                self.add_returned(bytes + RETURNED_OVERHEAD)?;
                self.contents.insert(channel, ExpectedFrame::Header);
            }
            DELIVER | GET_OK => drop(self.contents.insert(channel, ExpectedFrame::Header)),
            // A confirm releases the returned messages.
            (60, 80 | 120) => self.returned_header_bytes = 0,
            _ => {}
        }
        Ok(method)
    }

    fn tune(&mut self, arguments: &[u8]) -> Result<(), &'static str> {
        let Some(&[_, _, f3, f2, f1, f0, _, _]) = arguments.first_chunk() else {
            return Err("an unreadable method");
        };
        // 0 means no limit; the AMQP library raises values below the minimum of AMQP.
        let said = u32::from_be_bytes([f3, f2, f1, f0]);
        if said > 0 {
            self.frame_max = self.frame_max.min(said.max(MIN_FRAME_MAX) as usize);
        }
        Ok(())
    }

    /// Counts header bytes of a returned message.
    ///
    /// # Errors
    /// The limit is exceeded.
    pub(crate) fn add_returned(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.returned_header_bytes += bytes;
        if self.returned_header_bytes > MAX_RETURNED_BYTES {
            return Err("too many returned messages without a confirm");
        }
        Ok(())
    }

    /// Checks a content header.
    ///
    /// # Errors
    /// No header is expected, or the content is larger than a message can be.
    pub(crate) fn header(&mut self, channel: u16, payload: &[u8]) -> Result<(), &'static str> {
        let Some(&[_, _, _, _, size @ ..]) = payload.first_chunk::<12>() else {
            return Err("an unreadable content header");
        };
        let size = u64::from_be_bytes(size);
        match self.contents.remove(&channel) {
            Some(ExpectedFrame::Header) if size > MAX_MESSAGE_BYTES => {
                Err("a message of more than 512 MiB, which no broker accepts")
            }
            Some(ExpectedFrame::Header) => {
                if size > 0 {
                    self.contents.insert(channel, ExpectedFrame::Body(size));
                }
                Ok(())
            }
            _ => Err("an unexpected content header"),
        }
    }

    /// Checks the size of a content frame.
    ///
    /// # Errors
    /// There is more content than announced.
    pub(crate) fn body(&mut self, channel: u16, size: usize) -> Result<(), &'static str> {
        let Some(ExpectedFrame::Body(left)) = self.contents.get_mut(&channel) else {
            return Err("unexpected content");
        };
        *left = left.checked_sub(size as u64).ok_or("more content than announced")?;
        if *left == 0 {
            self.contents.remove(&channel);
        }
        Ok(())
    }
}

/// True for the methods that a broker sends. Of these only `connection.start` contains a table.
fn is_broker_method((class, method): MethodId) -> bool {
    match class {
        10 => matches!(method, 10 | 20 | 30 | 41 | 50 | 51 | 60 | 61 | 71),
        CHANNEL => matches!(method, 11 | 20 | 21 | 40 | 41),
        30 => method == 11,
        40 => matches!(method, 11 | 21 | 31 | 51),
        50 => matches!(method, 11 | 21 | 31 | 41 | 51),
        60 => matches!(method, 11 | 21 | 30 | 31 | 50 | 60 | 71 | 72 | 80 | 111 | 120),
        85 => method == 11,
        90 => matches!(method, 11 | 21 | 31),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method((class, method): MethodId, arguments: &[u8]) -> Vec<u8> {
        [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat()
    }

    fn header(size: u64) -> Vec<u8> {
        [&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat()
    }

    #[test]
    fn content_comes_behind_its_method_and_as_announced() {
        let mut sequence = FrameOrder::new(131_072);
        sequence.method(1, &mut method(DELIVER, b"")).unwrap();
        assert!(sequence.method(1, &mut method(DELIVER, b"")).is_err());
        sequence.method(2, &mut method(DELIVER, b"")).unwrap();
        sequence.header(1, &header(5)).unwrap();
        assert!(sequence.method(1, &mut method(DELIVER, b"")).is_err());
        sequence.body(1, 3).unwrap();
        assert!(sequence.body(1, 3).is_err());
        assert!(sequence.body(2, 1).is_err(), "its header comes first");
        sequence.header(2, &header(0)).unwrap();
        assert!(sequence.body(2, 1).is_err() && sequence.header(2, &header(0)).is_err());
        // A channel may be closed in the middle of a message.
        sequence.method(1, &mut method((20, 40), b"")).unwrap();
        sequence.method(1, &mut method((20, 11), b"")).unwrap();
        sequence.method(1, &mut method(DELIVER, b"")).unwrap();
        assert!(sequence.header(1, &header(MAX_MESSAGE_BYTES + 1)).is_err());
    }

    #[test]
    fn what_only_clients_send_is_refused() {
        for (class, number) in [(10, 11), (40, 10), (50, 10), (60, 20), (60, 40), (11, 10)] {
            assert!(FrameOrder::new(131_072).method(0, &mut method((class, number), b"")).is_err());
        }
        assert!(FrameOrder::new(131_072).method(0, &mut [0, 60, 0]).is_err());
    }

    #[test]
    fn the_lower_frame_max_holds() {
        for (said, holds) in [(0, 131_072), (u32::MAX, 131_072), (1, 4096), (8192, 8192)] {
            let mut sequence = FrameOrder::new(131_072);
            let arguments = [&[0, 0][..], &said.to_be_bytes(), &[0, 0]].concat();
            sequence.method(0, &mut method(TUNE, &arguments)).unwrap();
            assert_eq!(sequence.frame_max(), holds, "{said}");
        }
    }

    #[test]
    fn returned_messages_do_not_collect_without_end() {
        let mut sequence = FrameOrder::new(131_072);
        sequence.add_returned(MAX_RETURNED_BYTES).unwrap();
        sequence.method(1, &mut method((60, 80), b"")).unwrap();
        sequence.add_returned(MAX_RETURNED_BYTES).unwrap();
        assert!(sequence.add_returned(1).is_err());
    }

    #[test]
    fn deep_server_properties_are_refused() {
        let start = |depth: u32| {
            let mut table = b"\x01n".to_vec();
            for level in (0..depth).rev() {
                table.push(b'A');
                table.extend((level * 5).to_be_bytes());
            }
            let length = u32::try_from(table.len()).unwrap().to_be_bytes();
            method(START, &[&[0, 9][..], &length, &table, &[0; 8]].concat())
        };
        FrameOrder::new(131_072).method(0, &mut start(30)).unwrap();
        assert!(FrameOrder::new(131_072).method(0, &mut start(20_000)).is_err());
    }
}
