//! Servers that lie: hand-written listeners on the loopback, for answers that no real server gives. They hold one connection
//! each on a thread of its own, and what they send without an end ends when the client hangs up.

pub mod amqp;
pub mod http;
pub mod postgres;
pub mod redis;
pub mod relay;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// The most that is sent of what has no end: more than any memory the tests allow.
pub const MUCH: u64 = 8 << 30;

/// A listener. Dropped, it takes no more connections.
#[derive(Debug)]
pub struct Liar {
    address: SocketAddr,
    accepted: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Liar {
    /// Listens on a free port of 127.0.0.1 and has `lie` answer each connection; its errors end the connection.
    ///
    /// # Panics
    /// If no port can be bound.
    pub fn start(lie: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free loopback port");
        let address = listener.local_addr().expect("the address of a listener");
        let (accepted, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let own = (Arc::clone(&accepted), Arc::clone(&is_over));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if own.1.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), lie) = (stream, lie.clone()) else { continue };
                own.0.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || drop(lie(stream)));
            }
        });
        Self { address, accepted, is_over }
    }

    /// The address to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections came.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the listener up.
        drop(TcpStream::connect(self.address));
    }
}

/// Sends `piece` again and again, until the client hangs up or [`MUCH`] was sent.
///
/// # Errors
/// The client hung up.
pub fn without_end(stream: &mut TcpStream, piece: &[u8]) -> io::Result<()> {
    let piece = piece.repeat((1 << 16) / piece.len().max(1) + 1);
    let mut sent = 0;
    while sent < MUCH {
        stream.write_all(&piece)?;
        sent += piece.len() as u64;
    }
    Ok(())
}

/// Reads and forgets, until the client hangs up.
///
/// # Errors
/// The connection broke.
pub fn listen_only(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}
