//! Reads the figures of a running process over HTTP: [`read`].

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::telemetry::LiveStatus;

/// The time limit of a request.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most bytes of a response. That of the largest process is far below.
const LONGEST: usize = 1 << 20;

/// The figures of the process that listens on `address`.
///
/// # Errors
/// What went wrong, in words.
pub(super) async fn read(address: SocketAddr) -> Result<LiveStatus, String> {
    match tokio::time::timeout(PATIENCE, get(address)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

async fn get(address: SocketAddr) -> Result<LiveStatus, String> {
    let stream = TcpStream::connect(address).await.map_err(words)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    // It ends with the response, or when the sender is dropped.
    tokio::spawn(connection);
    let request = Request::get("/status.json").header(HOST, address.to_string());
    let request = request.body(Empty::<Bytes>::new()).map_err(words)?;
    let response = sender.send_request(request).await.map_err(words)?;
    if response.status() != StatusCode::OK {
        return Err(format!(
            "HTTP {}: it is not a run or a relay of this version",
            response.status().as_u16()
        ));
    }
    let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(words)?.to_bytes();
    serde_json::from_slice(&body)
        .map_err(|_| "the response is not that of a run or a relay of this version".to_owned())
}

fn words(error: impl Display) -> String {
    error.to_string()
}
