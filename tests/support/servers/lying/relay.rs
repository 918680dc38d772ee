//! A relay between a client and a real server that forwards faithfully until it is asked to lie: [`Relay`].

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::Liar;

/// Forwards bytes; while it lies, it sends these bytes instead of each answer, and closes the connection after them.
#[derive(Debug)]
pub struct Relay {
    liar: Liar,
    lie: Arc<Mutex<Option<Vec<u8>>>>,
    told: Arc<Mutex<u64>>,
}

impl Relay {
    /// Listens on a free port of 127.0.0.1 for clients of `server`, and forwards faithfully.
    ///
    /// # Panics
    /// If no port can be bound.
    #[must_use]
    pub fn to(server: SocketAddr) -> Self {
        let (lie, told) = (Arc::<Mutex<Option<Vec<u8>>>>::default(), Arc::<Mutex<u64>>::default());
        let own = (Arc::clone(&lie), Arc::clone(&told));
        let liar = Liar::start(move |client| {
            let upstream = TcpStream::connect(server)?;
            let (mut questions, mut to_server) = (client.try_clone()?, upstream.try_clone()?);
            thread::spawn(move || {
                let _ = io::copy(&mut questions, &mut to_server);
                to_server.shutdown(Shutdown::Both)
            });
            answer(upstream, client, &own.0, &own.1)
        });
        Self { liar, lie, told }
    }

    /// The address to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.liar.address()
    }

    /// Lies from now on, or no longer.
    pub fn lie(&self, lie: Option<&[u8]>) {
        *self.lie.lock().unwrap_or_else(PoisonError::into_inner) = lie.map(<[u8]>::to_vec);
    }

    /// The number of lies so far.
    #[must_use]
    pub fn told(&self) -> u64 {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(
    mut server: TcpStream,
    mut client: TcpStream,
    lie: &Mutex<Option<Vec<u8>>>,
    told: &Mutex<u64>,
) -> io::Result<()> {
    let mut piece = [0; 64 << 10];
    loop {
        let bytes = server.read(&mut piece)?;
        let lie = lie.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match lie {
            _ if bytes == 0 => break,
            None => client.write_all(&piece[..bytes])?,
            Some(lie) => {
                *told.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                client.write_all(&lie)?;
                break;
            }
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    client.shutdown(Shutdown::Both)
}
