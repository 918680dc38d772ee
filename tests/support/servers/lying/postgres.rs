//! A Postgres that lies: [`start`].

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::{Liar, listen_only, without_end};

/// An answer that no real server gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A message of this type and length, the length counting itself, and then bytes without an end, if it is so.
    Length(u8, u32, bool),
    /// These bytes as the first message, and then nothing.
    First(&'static [u8]),
    /// It lets everybody in, and these bytes answer every query.
    Answer(&'static [u8]),
}

/// Starts one. It has no TLS.
///
/// # Panics
/// If no port can be bound.
#[must_use]
pub fn start(lie: Lie) -> Liar {
    Liar::start(move |stream| serve(stream, lie))
}

fn serve(mut stream: TcpStream, lie: Lie) -> io::Result<()> {
    loop {
        let startup = body(&mut stream)?;
        // A request for TLS, or GSS encryption.
        if startup.starts_with(&[4, 210, 22]) {
            stream.write_all(b"N")?;
        } else {
            break;
        }
    }
    match lie {
        Lie::Length(kind, length, is_endless) => {
            stream.write_all(&[&[kind][..], &length.to_be_bytes()].concat())?;
            if is_endless {
                return without_end(&mut stream, &[0; 1024]);
            }
        }
        Lie::First(bytes) => stream.write_all(bytes)?,
        Lie::Answer(bytes) => {
            // AuthenticationOk, ReadyForQuery.
            stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")?;
            loop {
                let mut kind = [0];
                stream.read_exact(&mut kind)?;
                body(&mut stream)?;
                // A query, or the end of an extended one.
                if matches!(&kind, b"Q" | b"S") {
                    stream.write_all(bytes)?;
                }
            }
        }
    }
    listen_only(&mut stream)
}

/// A message's body, behind its length.
fn body(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
    stream.read_exact(&mut body)?;
    Ok(body)
}
