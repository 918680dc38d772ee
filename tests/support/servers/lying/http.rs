//! An HTTP server that lies, in place of SQS and of HTTP handlers: [`start`].

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::{Liar, listen_only, without_end};

/// Starts one that answers each request with `first`, and then `again` without an end.
///
/// # Panics
/// If no port can be bound.
#[must_use]
pub fn start(first: &'static str, again: impl Into<Vec<u8>>) -> Liar {
    let again = again.into();
    Liar::start(move |stream| serve(stream, first, &again))
}

fn serve(mut stream: TcpStream, first: &str, again: &[u8]) -> io::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            bytes => request.extend_from_slice(&piece[..bytes]),
        }
    }
    stream.write_all(first.as_bytes())?;
    if again.is_empty() {
        return listen_only(&mut stream);
    }
    without_end(&mut stream, again)
}
