//! Which frames may come next, and how much may be waiting: [`Sequence`]. A broker that keeps to AMQP never meets these limits;
//! one that does not, or somebody in the middle, would have the AMQP library collect without end, or recurse until the stack
//! is used up.

use std::collections::HashMap;

use crate::properties;

/// No broker has larger messages: RabbitMQ's own limit cannot be set higher.
const MAX_MESSAGE_BYTES: u64 = 512 << 20;
/// The heads of returned messages between two confirmations, in all.
const MAX_RETURNED_BYTES: usize = 256 << 20;
/// The smallest `frame_max` of AMQP.
pub(crate) const LEAST_FRAME_MAX: u32 = 4096;

/// Class and method.
pub(crate) type Method = (u16, u16);
pub(crate) const RETURN: Method = (60, 50);
pub(crate) const DELIVER: Method = (60, 60);
const GET_OK: Method = (60, 71);
const START: Method = (10, 10);
const TUNE: Method = (10, 30);
const CHANNEL: u16 = 20;

/// What comes next on a channel.
#[derive(Debug)]
enum Next {
    Header,
    /// So many bytes of content.
    Body(u64),
}

/// Follows the frames of one connection.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// The longest frame, head and end included.
    frame_max: usize,
    contents: HashMap<u16, Next>,
    returned_bytes: usize,
}

impl Sequence {
    /// For a connection that asks for frames of at most `frame_max` bytes.
    pub(crate) fn new(frame_max: usize) -> Self {
        Self { frame_max, contents: HashMap::new(), returned_bytes: 0 }
    }

    /// The longest frame, head and end included: the less of what we asked for and the broker said.
    pub(crate) fn frame_max(&self) -> usize {
        self.frame_max
    }

    /// Looks at a method.
    ///
    /// # Errors
    /// No broker sends it, or not now.
    pub(crate) fn method(&mut self, channel: u16, payload: &mut [u8]) -> Result<Method, &'static str> {
        let bytes = payload.len();
        let Some((&mut [c1, c0, m1, m0], arguments)) = payload.split_first_chunk_mut() else {
            return Err("a method cannot be read");
        };
        let method = (u16::from_be_bytes([c1, c0]), u16::from_be_bytes([m1, m0]));
        if !is_of_a_broker(method) {
            return Err("a method that only clients send");
        }
        if method.0 == CHANNEL {
            self.contents.remove(&channel);
        } else if self.contents.contains_key(&channel) {
            return Err("a method where a message's content must come");
        }
        match method {
            START if !properties::is_start_readable(arguments) => {
                return Err("server properties that cannot be read");
            }
            TUNE => self.tune(arguments)?,
            RETURN => {
                self.returned(bytes)?;
                self.contents.insert(channel, Next::Header);
            }
            DELIVER | GET_OK => drop(self.contents.insert(channel, Next::Header)),
            // A confirmation takes the returned messages along.
            (60, 80 | 120) => self.returned_bytes = 0,
            _ => {}
        }
        Ok(method)
    }

    fn tune(&mut self, arguments: &[u8]) -> Result<(), &'static str> {
        let Some(&[_, _, f3, f2, f1, f0, _, _]) = arguments.first_chunk() else {
            return Err("a method cannot be read");
        };
        // 0 is no limit; the AMQP library raises what is below AMQP's least.
        let said = u32::from_be_bytes([f3, f2, f1, f0]);
        if said > 0 {
            self.frame_max = self.frame_max.min(said.max(LEAST_FRAME_MAX) as usize);
        }
        Ok(())
    }

    /// Counts bytes of the head of a returned message.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn returned(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.returned_bytes += bytes;
        if self.returned_bytes > MAX_RETURNED_BYTES {
            return Err("returned messages without a confirmation");
        }
        Ok(())
    }

    /// Looks at a content header.
    ///
    /// # Errors
    /// None is due, or the content is larger than any message can be.
    pub(crate) fn header(&mut self, channel: u16, payload: &[u8]) -> Result<(), &'static str> {
        let Some(&[_, _, _, _, size @ ..]) = payload.first_chunk::<12>() else {
            return Err("a content header cannot be read");
        };
        let size = u64::from_be_bytes(size);
        match self.contents.remove(&channel) {
            Some(Next::Header) if size > MAX_MESSAGE_BYTES => {
                Err("a message of more than 512 MiB, which no broker takes")
            }
            Some(Next::Header) => {
                if size > 0 {
                    self.contents.insert(channel, Next::Body(size));
                }
                Ok(())
            }
            _ => Err("a content header where none is due"),
        }
    }

    /// Looks at the size of a piece of content.
    ///
    /// # Errors
    /// There is more than was announced.
    pub(crate) fn body(&mut self, channel: u16, size: usize) -> Result<(), &'static str> {
        let Some(Next::Body(left)) = self.contents.get_mut(&channel) else {
            return Err("content where none is due");
        };
        *left = left.checked_sub(size as u64).ok_or("more content than announced")?;
        if *left == 0 {
            self.contents.remove(&channel);
        }
        Ok(())
    }
}

/// The methods that a broker sends. None but `connection.start` has a table in it.
fn is_of_a_broker((class, method): Method) -> bool {
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

    fn method((class, method): Method, arguments: &[u8]) -> Vec<u8> {
        [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat()
    }

    fn header(size: u64) -> Vec<u8> {
        [&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat()
    }

    #[test]
    fn content_comes_behind_its_method_and_as_announced() {
        let mut sequence = Sequence::new(131_072);
        sequence.method(1, &mut method(DELIVER, b"")).unwrap();
        assert!(sequence.method(1, &mut method(DELIVER, b"")).is_err());
        sequence.method(2, &mut method(DELIVER, b"")).unwrap();
        sequence.header(1, &header(5)).unwrap();
        assert!(sequence.method(1, &mut method(DELIVER, b"")).is_err());
        sequence.body(1, 3).unwrap();
        assert!(sequence.body(1, 3).is_err());
        assert!(sequence.body(2, 1).is_err(), "its header is due");
        sequence.header(2, &header(0)).unwrap();
        assert!(sequence.body(2, 1).is_err() && sequence.header(2, &header(0)).is_err());
        // A channel may end in the middle.
        sequence.method(1, &mut method((20, 40), b"")).unwrap();
        sequence.method(1, &mut method((20, 11), b"")).unwrap();
        sequence.method(1, &mut method(DELIVER, b"")).unwrap();
        assert!(sequence.header(1, &header(MAX_MESSAGE_BYTES + 1)).is_err());
    }

    #[test]
    fn what_only_clients_send_is_refused() {
        for (class, number) in [(10, 11), (40, 10), (50, 10), (60, 20), (60, 40), (11, 10)] {
            assert!(Sequence::new(131_072).method(0, &mut method((class, number), b"")).is_err());
        }
        assert!(Sequence::new(131_072).method(0, &mut [0, 60, 0]).is_err());
    }

    #[test]
    fn the_lower_frame_max_holds() {
        for (said, holds) in [(0, 131_072), (u32::MAX, 131_072), (1, 4096), (8192, 8192)] {
            let mut sequence = Sequence::new(131_072);
            let arguments = [&[0, 0][..], &said.to_be_bytes(), &[0, 0]].concat();
            sequence.method(0, &mut method(TUNE, &arguments)).unwrap();
            assert_eq!(sequence.frame_max(), holds, "{said}");
        }
    }

    #[test]
    fn returned_messages_do_not_collect_without_end() {
        let mut sequence = Sequence::new(131_072);
        sequence.returned(MAX_RETURNED_BYTES).unwrap();
        sequence.method(1, &mut method((60, 80), b"")).unwrap();
        sequence.returned(MAX_RETURNED_BYTES).unwrap();
        assert!(sequence.returned(1).is_err());
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
        Sequence::new(131_072).method(0, &mut start(30)).unwrap();
        assert!(Sequence::new(131_072).method(0, &mut start(20_000)).is_err());
    }
}
