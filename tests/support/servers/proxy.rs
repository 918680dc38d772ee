//! A TCP proxy on the loopback that breaks connections on demand: [`Proxy`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// They pass.
    Pass,
    /// They wait until the flow changes: a slow or paused network. Nothing is lost.
    Stall,
    /// Each piece that is read waits this long before it is passed on.
    Delay(Duration),
    /// They vanish, and so does the end of the stream. Such a connection never recovers.
    Drop,
}

/// The two directions of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    ToServer,
    /// From the server to the client: replies.
    ToClient,
}

#[derive(Clone, Copy, Debug)]
struct Flows {
    to_server: Flow,
    to_client: Flow,
    cut: bool,
}

impl Flows {
    const PASS: Self = Self { to_server: Flow::Pass, to_client: Flow::Pass, cut: false };

    fn get(self, direction: Direction) -> Flow {
        match direction {
            Direction::ToServer => self.to_server,
            Direction::ToClient => self.to_client,
        }
    }

    fn set(&mut self, direction: Direction, flow: Flow) {
        match direction {
            Direction::ToServer => self.to_server = flow,
            Direction::ToClient => self.to_client = flow,
        }
    }
}

struct State {
    target: SocketAddr,
    /// How connections to come begin.
    fresh: Flows,
    refusing: bool,
    connections: Vec<watch::Sender<Flows>>,
    accepted: u64,
}

/// Passes connections on to a server, and breaks them in the ways networks do. It runs on threads of its own, so that a
/// test may use any runtime, or none. Dropping it cuts all connections.
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes connections on to `target`.
    ///
    /// # Errors
    /// No port can be bound, or no thread started.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let state = Arc::new(Mutex::new(State {
            target,
            fresh: Flows::PASS,
            refusing: false,
            connections: Vec::new(),
            accepted: 0,
        }));
        runtime.spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { port, state, runtime: Some(runtime) })
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.with(|state| state.accepted)
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.with(|state| {
            state.connections.retain(|connection| !connection.is_closed());
            state.connections.len()
        })
    }

    /// Sets the flow of one direction, for the open connections and for those to come.
    pub fn set(&self, direction: Direction, flow: Flow) {
        self.with(|state| {
            state.fresh.set(direction, flow);
            state.each(|flows| flows.set(direction, flow));
        });
    }

    /// Resets (TCP RST) the open connections. New ones pass.
    pub fn cut(&self) {
        self.with(|state| state.each(|flows| flows.cut = true));
    }

    /// Makes the open connections half-open: all packets vanish in both directions and neither side is notified. New
    /// connections pass, as after a NAT entry was lost.
    pub fn half_open(&self) {
        self.with(|state| {
            state.each(|flows| {
                flows.to_server = Flow::Drop;
                flows.to_client = Flow::Drop;
            });
        });
    }

    /// Drops the replies of the open connections: the server executes the requests, the client never gets the replies.
    pub fn drop_replies(&self) {
        self.with(|state| state.each(|flows| flows.to_client = Flow::Drop));
    }

    /// Cuts the open connections and closes new ones at once, until [`heal`](Self::heal): the server is unreachable.
    pub fn refuse(&self) {
        self.with(|state| {
            state.refusing = true;
            state.each(|flows| flows.cut = true);
        });
    }

    /// Loses all packets of open and of new connections, until [`heal`](Self::heal): a partition.
    pub fn partition(&self) {
        self.set(Direction::ToServer, Flow::Drop);
        self.set(Direction::ToClient, Flow::Drop);
    }

    /// Lets everything pass again. Connections that lost bytes cannot continue and are reset.
    pub fn heal(&self) {
        self.with(|state| {
            state.fresh = Flows::PASS;
            state.refusing = false;
            state.each(|flows| {
                flows.cut |= flows.to_server == Flow::Drop || flows.to_client == Flow::Drop;
                (flows.to_server, flows.to_client) = (Flow::Pass, Flow::Pass);
            });
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A test's runtime may be the one that drops us, and it must not block.
            runtime.shutdown_background();
        }
    }
}

impl State {
    fn each(&mut self, act: impl Fn(&mut Flows)) {
        self.connections.retain(|connection| !connection.is_closed());
        self.connections.iter().for_each(|connection| connection.send_modify(&act));
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((client, _)) = listener.accept().await {
        let (target, flows) = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.accepted += 1;
            if state.refusing {
                let _ = client.set_zero_linger();
                continue;
            }
            let (sender, flows) = watch::channel(state.fresh);
            state.connections.push(sender);
            (state.target, flows)
        };
        tokio::spawn(async move {
            match TcpStream::connect(target).await {
                Ok(server) => carry(client, server, flows).await,
                Err(_) => drop(client.set_zero_linger()),
            }
        });
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, mut flows: watch::Receiver<Flows>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let orderly = {
        // Borrowed halves: owned ones close the connection in an orderly way when they are dropped.
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(from_client, to_server, flows.clone(), Direction::ToServer);
        let down = pump(from_server, to_client, flows.clone(), Direction::ToClient);
        tokio::select! {
            biased;
            _ = flows.wait_for(|flows| flows.cut) => false,
            ended = async { tokio::try_join!(up, down) } => ended.is_ok(),
        }
    };
    if !orderly {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Carries one direction until its end, which is passed on; anything else is an error.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut flows: watch::Receiver<Flows>,
    direction: Direction,
) -> io::Result<()> {
    let gone = |_| io::Error::other("the proxy is gone");
    let mut buffer = vec![0; 64 << 10];
    loop {
        let flow = flows.borrow_and_update().get(direction);
        let read = tokio::select! {
            biased;
            changed = flows.changed() => {
                changed.map_err(gone)?;
                continue;
            }
            read = from.read(&mut buffer), if flow != Flow::Stall => read,
        };
        let bytes = read?;
        // What is done with the piece is decided by the flow it meets after it was read.
        loop {
            let flow = flows.borrow_and_update().get(direction);
            match flow {
                Flow::Stall => {
                    flows.changed().await.map_err(gone)?;
                    continue;
                }
                Flow::Drop if bytes == 0 => std::future::pending().await,
                Flow::Drop => {}
                _ if bytes == 0 => {
                    return to.shutdown().await;
                }
                Flow::Pass | Flow::Delay(_) => {
                    if let Flow::Delay(delay) = flow {
                        tokio::time::sleep(delay).await;
                    }
                    to.write_all(&buffer[..bytes]).await?;
                }
            }
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// A client behind a proxy, and the server's end of its connection.
    fn connected() -> (Proxy, TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        let client = TcpStream::connect(proxy.address()).unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        }
        (proxy, client, server)
    }

    fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
        from.write_all(b"x")?;
        to.read_exact(&mut [0])
    }

    fn timed_out(result: io::Result<()>) -> bool {
        matches!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
    }

    #[test]
    fn bytes_and_the_end_of_a_stream_pass() {
        let (_proxy, mut client, mut server) = connected();
        arrives(&mut client, &mut server).unwrap();
        arrives(&mut server, &mut client).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        arrives(&mut server, &mut client).unwrap();
    }

    #[test]
    fn a_cut_resets_both_sides() {
        let (proxy, mut client, mut server) = connected();
        arrives(&mut client, &mut server).unwrap();
        proxy.cut();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        TcpStream::connect(proxy.address()).unwrap();
    }

    #[test]
    fn a_stalled_direction_loses_nothing_and_the_other_passes() {
        let (proxy, mut client, mut server) = connected();
        proxy.set(Direction::ToServer, Flow::Stall);
        assert!(timed_out(arrives(&mut client, &mut server)));
        arrives(&mut server, &mut client).unwrap();
        proxy.heal();
        server.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn half_open_connections_hear_nothing_and_healing_resets_them() {
        let (proxy, mut client, mut server) = connected();
        arrives(&mut client, &mut server).unwrap();
        proxy.half_open();
        assert!(timed_out(arrives(&mut client, &mut server)));
        drop(server);
        assert!(timed_out(client.read_exact(&mut [0])));
        proxy.heal();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn dropped_replies_leave_requests_alone() {
        let (proxy, mut client, mut server) = connected();
        proxy.drop_replies();
        arrives(&mut client, &mut server).unwrap();
        assert!(timed_out(arrives(&mut server, &mut client)));
    }

    #[test]
    fn a_refusing_proxy_closes_new_connections_until_it_heals() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        proxy.refuse();
        let mut refused = TcpStream::connect(proxy.address()).unwrap();
        assert!(!matches!(refused.read(&mut [0]), Ok(1..)));
        proxy.heal();
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        arrives(&mut client, &mut server).unwrap();
        assert_eq!((proxy.accepted(), proxy.open()), (2, 1));
    }
}
