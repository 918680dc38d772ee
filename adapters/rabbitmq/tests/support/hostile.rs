//! Publishes messages that no AMQP library would send.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// A content header's flags and properties.
pub struct Properties {
    pub flags: u16,
    pub bytes: Vec<u8>,
}

/// Only a message id.
pub fn message_id(id: &[u8]) -> Properties {
    Properties { flags: 1 << 7, bytes: short(id) }
}

/// Only headers, given as the bytes of the table's fields.
pub fn headers(fields: &[u8]) -> Properties {
    Properties { flags: 1 << 13, bytes: [&(fields.len() as u32).to_be_bytes(), fields].concat() }
}

/// Arrays in arrays, in the header `n`.
pub fn nested(depth: usize) -> Properties {
    let mut fields = b"\x01n".to_vec();
    for level in (0..depth).rev() {
        fields.push(b'A');
        fields.extend((level as u32 * 5).to_be_bytes());
    }
    headers(&fields)
}

/// A field `name` with the long string `value`.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [short(name), b"S".to_vec(), (value.len() as u32).to_be_bytes().to_vec(), value.to_vec()].concat()
}

/// Publishes one message to `queue`, through the default exchange, and waits for its confirm.
pub fn publish(port: u16, queue: &str, properties: &Properties, payload: &[u8]) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
    expect(&mut stream, [0, 10, 0, 10]);
    let mut start_ok = vec![0, 10, 0, 11, 0, 0, 0, 0];
    start_ok.extend(short(b"PLAIN"));
    start_ok.extend(12_u32.to_be_bytes());
    start_ok.extend(b"\0guest\0guest");
    start_ok.extend(short(b"en_US"));
    send(&mut stream, 1, 0, &start_ok);
    expect(&mut stream, [0, 10, 0, 30]);
    send(&mut stream, 1, 0, &[&[0, 10, 0, 31, 7, 255][..], &131_072_u32.to_be_bytes(), &[0, 0]].concat());
    send(&mut stream, 1, 0, &[&[0, 10, 0, 40][..], &short(b"/"), &[0, 0]].concat());
    expect(&mut stream, [0, 10, 0, 41]);
    send(&mut stream, 1, 1, &[0, 20, 0, 10, 0]);
    expect(&mut stream, [0, 20, 0, 11]);
    send(&mut stream, 1, 1, &[0, 85, 0, 10, 0]);
    expect(&mut stream, [0, 85, 0, 11]);
    send(&mut stream, 1, 1, &[&[0, 60, 0, 40, 0, 0, 0][..], &short(queue.as_bytes()), &[0]].concat());
    let mut header = vec![0, 60, 0, 0];
    header.extend((payload.len() as u64).to_be_bytes());
    header.extend(properties.flags.to_be_bytes());
    header.extend(&properties.bytes);
    send(&mut stream, 2, 1, &header);
    payload.chunks(131_000).for_each(|piece| send(&mut stream, 3, 1, piece));
    expect(&mut stream, [0, 60, 0, 80]);
}

fn send(stream: &mut TcpStream, kind: u8, channel: u16, payload: &[u8]) {
    let mut frame = vec![kind];
    frame.extend(channel.to_be_bytes());
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame.push(0xce);
    stream.write_all(&frame).unwrap();
}

/// Reads the next frame, which must be this method.
fn expect(stream: &mut TcpStream, method: [u8; 4]) {
    let mut head = [0; 7];
    stream.read_exact(&mut head).unwrap();
    let mut rest = vec![0; u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize + 1];
    stream.read_exact(&mut rest).unwrap();
    assert_eq!(rest[..4], method, "the broker said {:?}", String::from_utf8_lossy(&rest));
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[text.len() as u8], text].concat()
}
