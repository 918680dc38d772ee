//! A small HTTP/1.1 server on loopback with the answers that a test configures.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub struct Request {
    /// Method and path.
    pub line: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

#[derive(Clone)]
pub enum Reply {
    /// These bytes, and the connection stays open.
    Raw(String),
    /// These bytes, and a little later those; the connection stays open.
    Slow(String, String),
    /// These bytes, then the connection is closed.
    Last(String),
    /// Nothing, until the client closes the connection.
    Never,
}

impl Reply {
    pub fn status(status: &str, headers: &str, body: &str) -> Self {
        Self::Raw(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()))
    }
}

#[derive(Default)]
pub struct Seen {
    pub requests: Mutex<Vec<Request>>,
    pub connections: AtomicUsize,
    /// Notified when a request has arrived, and when a client has closed its connection.
    pub arrived: Notify,
    pub closed: Notify,
}

pub struct Server {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    _accepting: JoinSet<()>,
}

impl Server {
    pub async fn start(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let mut accepting = JoinSet::new();
        accepting.spawn({
            let (seen, reply) = (Arc::clone(&seen), Arc::new(reply));
            async move {
                let mut connections = JoinSet::new();
                loop {
                    let (connection, _) = listener.accept().await.unwrap();
                    seen.connections.fetch_add(1, Ordering::SeqCst);
                    let (seen, reply) = (Arc::clone(&seen), Arc::clone(&reply));
                    connections.spawn(async move {
                        serve(connection, &seen, &*reply).await;
                        seen.closed.notify_one();
                    });
                }
            }
        });
        Self { address, seen, _accepting: accepting }
    }

    pub async fn always(status: &str, headers: &str, body: &str) -> Self {
        let reply = Reply::status(status, headers, body);
        Self::start(move |_| reply.clone()).await
    }

    pub fn url(&self) -> String {
        format!("http://{}/orders", self.address)
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

async fn serve(mut connection: TcpStream, seen: &Seen, reply: &(dyn Fn(&Request) -> Reply + Send + Sync)) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut connection, &mut buffer).await {
        let reply = reply(&request);
        seen.requests.lock().unwrap().push(request);
        seen.arrived.notify_one();
        match reply {
            Reply::Raw(bytes) => {
                if connection.write_all(bytes.as_bytes()).await.is_err() {
                    return;
                }
            }
            Reply::Slow(head, body) => {
                let sent = connection.write_all(head.as_bytes()).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
                if sent.is_err() || connection.write_all(body.as_bytes()).await.is_err() {
                    return;
                }
            }
            Reply::Last(bytes) => {
                let _ = connection.write_all(bytes.as_bytes()).await;
                return;
            }
            Reply::Never => while !matches!(connection.read(&mut [0; 1024]).await, Ok(0) | Err(_)) {},
        }
    }
}

async fn read_request(connection: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if connection.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).expect("only ASCII is sent");
    let mut lines = head.split("\r\n");
    let line = lines.next()?.to_owned();
    let header =
        |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    let headers: HashMap<_, _> = lines.filter_map(header).collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    buffer.drain(..end + 4);
    while buffer.len() < length {
        if connection.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer.drain(..length).collect();
    Some(Request { line, headers, body })
}
