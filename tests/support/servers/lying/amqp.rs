//! A RabbitMQ that lies: [`start`].

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::{Liar, listen_only, without_end};

/// An answer that no real broker gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Server properties nested so deep.
    DeepProperties(u32),
    /// A `connection.start` of so many bytes.
    LongStart(u32),
    /// A frame that announces so many bytes, and sends them without an end.
    LongFrame(u32),
    /// These limits in `connection.tune`: channels, bytes of a frame, seconds. Everything else is as it should be.
    Tune(u16, u32, u16),
    /// Heartbeats without an end, before the login is answered.
    HeartbeatsOnly,
    /// A message of so many bytes, sent without an end.
    LongMessage(u64),
    /// Deliveries without an end and without content.
    NoContent,
    /// Small messages without an end, whatever the prefetch.
    TooManyMessages,
    /// The same for a subscription that there is not.
    UnknownSubscription,
    /// Returned messages that were never published, without an end.
    Returns,
}

/// Starts one. Behind the lie, or beside a harmless one, it has one queue with the message `hello` in it.
///
/// # Panics
/// If no port can be bound.
#[must_use]
pub fn start(lie: Lie) -> Liar {
    Liar::start(move |stream| serve(stream, lie))
}

/// An honest broker's limits: channels, bytes of a frame, seconds.
const TUNE: (u16, u32, u16) = (2047, 131_072, 60);

fn serve(mut stream: TcpStream, lie: Lie) -> io::Result<()> {
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting)?;
    match lie {
        Lie::LongFrame(size) => {
            stream.write_all(&[&[1, 0, 0][..], &size.to_be_bytes(), &[0, 10, 0, 10, 0, 9]].concat())?;
            return without_end(&mut stream, &[0; 1024]);
        }
        Lie::DeepProperties(depth) => stream.write_all(&begin(&nested(depth), b"PLAIN"))?,
        Lie::LongStart(size) => stream.write_all(&begin(b"", &vec![b'x'; size as usize]))?,
        _ => stream.write_all(&begin(b"", b"PLAIN EXTERNAL"))?,
    }
    loop {
        let (kind, channel, payload) = frame(&mut stream)?;
        let Some(&[_, class, _, method]) = payload.first_chunk() else { continue };
        if kind != 1 {
            continue;
        }
        let answer: &[u8] = match (class, method) {
            (10, 11) if lie == Lie::HeartbeatsOnly => {
                return without_end(&mut stream, &[8, 0, 0, 0, 0, 0, 0, 0xce]);
            }
            (10, 11) => {
                let (channels, frame, heartbeat) =
                    if let Lie::Tune(c, f, h) = lie { (c, f, h) } else { TUNE };
                let tune = [
                    &[0, 10, 0, 30][..],
                    &channels.to_be_bytes(),
                    &frame.to_be_bytes(),
                    &heartbeat.to_be_bytes(),
                ];
                stream.write_all(&method_frame(0, &tune.concat()))?;
                continue;
            }
            (10, 40) => &[0, 10, 0, 41, 0],
            (10, 50) => {
                stream.write_all(&method_frame(0, &[0, 10, 0, 51]))?;
                return listen_only(&mut stream);
            }
            (20, 10) => &[0, 20, 0, 11, 0, 0, 0, 0],
            (20, 40) => &[0, 20, 0, 41],
            (50, 10) => &[0, 50, 0, 11, 1, b'q', 0, 0, 0, 1, 0, 0, 0, 1],
            (60, 10) => &[0, 60, 0, 11],
            (60, 20) => {
                stream.write_all(&method_frame(channel, &[0, 60, 0, 21, 1, b't']))?;
                // That one only asks what type the queue has.
                if !payload.windows(15).any(|name| name == b"x-stream-offset") {
                    consumed(&mut stream, channel, lie)?;
                }
                continue;
            }
            (60, 30) => &[0, 60, 0, 31, 1, b't'],
            (85, 10) => &[0, 85, 0, 11],
            _ => continue,
        };
        stream.write_all(&method_frame(channel, answer))?;
    }
}

/// What follows a subscription.
fn consumed(stream: &mut TcpStream, channel: u16, lie: Lie) -> io::Result<()> {
    match lie {
        Lie::LongMessage(size) => {
            stream.write_all(&[deliver(channel, b't'), header(channel, size)].concat())?;
            without_end(stream, &any_frame(3, channel, &[0; 64 << 10]))
        }
        Lie::NoContent => without_end(stream, &deliver(channel, b't')),
        Lie::TooManyMessages => without_end(stream, &message(channel, b't')),
        Lie::UnknownSubscription => without_end(stream, &message(channel, b'?')),
        Lie::Returns => {
            let returned = method_frame(channel, &[0, 60, 0, 50, 1, 56, 0, 0, 1, b'q']);
            let whole = [returned, header(channel, 5), any_frame(3, channel, b"hello")].concat();
            without_end(stream, &whole)
        }
        _ => stream.write_all(&message(channel, b't')),
    }
}

fn message(channel: u16, subscription: u8) -> Vec<u8> {
    [deliver(channel, subscription), header(channel, 5), any_frame(3, channel, b"hello")].concat()
}

fn deliver(channel: u16, subscription: u8) -> Vec<u8> {
    // Subscription, delivery tag, redelivered, exchange, routing key.
    method_frame(channel, &[0, 60, 0, 60, 1, subscription, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, b'q'])
}

fn header(channel: u16, size: u64) -> Vec<u8> {
    any_frame(2, channel, &[&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat())
}

fn begin(properties: &[u8], mechanisms: &[u8]) -> Vec<u8> {
    let long = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes(), bytes].concat();
    let parts = [&[0, 10, 0, 10, 0, 9][..], &long(properties), &long(mechanisms), &long(b"en_US")];
    method_frame(0, &parts.concat())
}

/// Arrays in arrays, as the field `n`.
fn nested(depth: u32) -> Vec<u8> {
    let mut fields = b"\x01n".to_vec();
    for level in (0..depth).rev() {
        fields.push(b'A');
        fields.extend((level * 5).to_be_bytes());
    }
    fields
}

fn method_frame(channel: u16, payload: &[u8]) -> Vec<u8> {
    any_frame(1, channel, payload)
}

fn any_frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xce]].concat()
}

/// The next frame: kind, channel, payload.
fn frame(stream: &mut TcpStream) -> io::Result<(u8, u16, Vec<u8>)> {
    let mut head = [0; 7];
    stream.read_exact(&mut head)?;
    let [kind, c1, c0, s3, s2, s1, s0] = head;
    let mut payload = vec![0; u32::from_be_bytes([s3, s2, s1, s0]) as usize + 1];
    stream.read_exact(&mut payload)?;
    payload.pop();
    Ok((kind, u16::from_be_bytes([c1, c0]), payload))
}
