//! A Redis that lies: [`start`].

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::{Liar, listen_only, without_end};

/// Starts one that answers the first command with `first`, and then `again` without an end.
///
/// # Panics
/// If no port can be bound.
#[must_use]
pub fn start(first: &'static [u8], again: &'static [u8]) -> Liar {
    Liar::start(move |stream| serve(stream, first, again))
}

fn serve(mut stream: TcpStream, first: &[u8], again: &[u8]) -> io::Result<()> {
    let mut command = [0; 512];
    let _ = stream.read(&mut command)?;
    stream.write_all(first)?;
    if again.is_empty() {
        return listen_only(&mut stream);
    }
    without_end(&mut stream, again)
}
