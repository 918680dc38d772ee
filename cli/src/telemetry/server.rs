//! HTTP server of the endpoints: GET, but for the [actions](Actions) of the status page; one request per connection, short time limits, and a bounded number of connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::connections::Connections;
use super::letter_orders::LetterActions;
use super::readiness::Readiness;
use super::status::{self, ACTION_LIFE, Actions, RateHistory};
use super::watched::Watched;
use super::{exposition, metrics};
use crate::config::Config;
use crate::exit::{Exit, Failure};

/// The time limit for receiving the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// The time limit of a connection, including the response; an action may take longer. It serves one request.
const LIFE: Duration = Duration::from_secs(10);

/// The most bytes buffered per connection.
const READ_BYTES: usize = 16 << 10;

/// The pause after a failed accept, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Endpoints {
    watched: Arc<Watched>,
    history: Arc<RateHistory>,
    /// `None` without a token.
    actions: Option<Actions>,
}

/// Listens on `address` and serves in the background until the runtime ends.
///
/// # Errors
/// The address cannot be bound, or the token cannot be read.
pub(super) async fn start(
    config: &Config,
    address: SocketAddr,
    watched: Arc<Watched>,
    desk: Option<Arc<dyn LetterActions>>,
) -> Result<(), Failure> {
    let actions = desk.map(|desk| Actions::new(config, desk)).transpose()?.flatten();
    let cannot = |error: std::io::Error| {
        let error = config.refuse(
            "telemetry.listen",
            format!("cannot listen on {address} ({error})"),
            "choose an address of this host and a free port",
        );
        Failure::new(Exit::Failed, error.to_string())
    };
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    // With port 0 the system has chosen the port.
    let address = listener.local_addr().map_err(cannot)?;
    tracing::info!(%address, "telemetry endpoints started: /metrics, /status, /health/live, /health/ready");
    let history = Arc::<RateHistory>::default();
    tokio::spawn(Arc::clone(&history).keep(Arc::clone(&watched)));
    tokio::spawn(serve(listener, Arc::new(Endpoints { watched, history, actions })));
    Ok(())
}

async fn serve(listener: TcpListener, endpoints: Arc<Endpoints>) {
    let mut open = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                open.make_room();
                let has_asked = Arc::new(AtomicBool::new(false));
                let task = tokio::spawn(connection(stream, Arc::clone(&endpoints), Arc::clone(&has_asked)));
                open.add(peer.ip().to_canonical(), task.abort_handle(), has_asked);
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a telemetry connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, endpoints: Arc<Endpoints>, has_asked: Arc<AtomicBool>) {
    let acts = Arc::new(AtomicBool::new(false));
    let is_acting = Arc::clone(&acts);
    let service = service_fn(move |request| {
        has_asked.store(true, Ordering::Relaxed);
        let (endpoints, acts) = (Arc::clone(&endpoints), Arc::clone(&acts));
        async move { Ok::<_, Infallible>(endpoints.respond(request, &acts).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(READ_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // A scraper that disconnects, or is disconnected because it does not read, is not an error.
    tokio::pin!(served);
    if tokio::time::timeout(LIFE, &mut served).await.is_err() && is_acting.load(Ordering::Relaxed) {
        let _ = tokio::time::timeout(ACTION_LIFE, served).await;
    }
}

impl Endpoints {
    /// `acts` becomes true with an action, which takes its time.
    async fn respond(&self, request: Request<Incoming>, acts: &AtomicBool) -> Response<Full<Bytes>> {
        if let Some(actions) = &self.actions
            && let Some(asked) = status::request_at(request.uri().path())
        {
            return actions.respond(asked, request, &self.watched, acts).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is supported\n");
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/metrics" => {
                let text = exposition::text(&metrics::read(&self.watched));
                response(StatusCode::OK, exposition::CONTENT_TYPE, text)
            }
            "/health/live" => plain(StatusCode::OK, "live\n"),
            "/health/ready" => ready(&Readiness::current(&self.watched)),
            path => status::respond(path, &self.watched, &self.history, self.actions.is_some()).unwrap_or_else(|| {
                plain(
                    StatusCode::NOT_FOUND,
                    "not found; the endpoints are /metrics, /status, /status.json, /health/live and /health/ready\n",
                )
            }),
        }
    }
}

fn ready(readiness: &Readiness) -> Response<Full<Bytes>> {
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    plain(status, format!("{readiness}\n"))
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}
