//! Free ports on the loopback.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// The ports to choose from: below those that the kernel gives to outgoing connections, from 32768 on (`ip_local_port_range` in ip(7)),
/// and above the usual ports of servers.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port of 127.0.0.1 that was free a moment ago. No outgoing connection takes it before the caller does, and test processes at the same
/// time begin at different places. Should another process take it, starting a server then fails loudly.
///
/// # Errors
/// No port could be bound.
pub fn free_port() -> io::Result<u16> {
    static USED: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time have neighbouring ids.
    let begin = std::process::id().wrapping_mul(613) % u32::from(COUNT);
    let mut failed = None;
    for _ in 0..COUNT {
        let next = (begin + u32::from(USED.fetch_add(1, Ordering::Relaxed))) % u32::from(COUNT);
        let port = FIRST + u16::try_from(next).unwrap_or(0);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}
