//! The HTTP handler against a loop over the same client.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use reqwest::Client;
use tokio::net::TcpListener;

use crate::stage::Stage;

/// The first argument of the process that is the server.
pub(crate) const SERVE: &str = "serve";
/// Requests at once, of both.
const CONCURRENCY: usize = 128;
const BATCH: usize = 50;

/// A server in a process of its own, which ends with this one.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.arg(SERVE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, url: format!("http://127.0.0.1:{}/", port.trim()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers each request with 204, and an array with a result for each of its items.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn serve() {
    // The process that started it holds the other end.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    #[allow(clippy::print_stdout)]
    {
        println!("{}", listener.local_addr().unwrap().port());
    }
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            let answer = service_fn(answer);
            // The client ends it.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut response = Response::new(Full::default());
    match body.first() {
        Some(b'[') => {
            let items: Vec<serde_json::Value> = serde_json::from_slice(&body).unwrap();
            let results: Vec<_> =
                items.iter().map(|item| serde_json::json!({"id": item["id"], "ok": true})).collect();
            *response.body_mut() = Full::new(serde_json::to_vec(&results).unwrap().into());
        }
        _ => *response.status_mut() = hyper::StatusCode::NO_CONTENT,
    }
    Ok(response)
}

/// The loop that people would write with the same client.
async fn bare(url: &str, messages: usize) -> f64 {
    let client = Client::builder().no_proxy().pool_max_idle_per_host(CONCURRENCY).build().unwrap();
    let lines: Arc<Vec<Bytes>> = Arc::new(Stage::lines(0..messages).map(Bytes::from).collect());
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let loops: Vec<_> = (0..CONCURRENCY)
        .map(|_| {
            let (client, lines, next, url) =
                (client.clone(), Arc::clone(&lines), Arc::clone(&next), url.to_owned());
            tokio::spawn(async move {
                while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let answered = client.post(&url).body(line.clone()).send().await.unwrap();
                    assert!(answered.status().is_success());
                }
            })
        })
        .collect();
    for one in loops {
        one.await.unwrap();
    }
    messages as f64 / began.elapsed().as_secs_f64()
}

pub(crate) fn measure(stage: &Stage) {
    let (server, messages) = (Server::start(), stage.figures.messages(100_000));
    let file = stage.file(0..messages);
    let once = |batch: usize| {
        let config = stage.configuration(&format!(
            "[source.file]\npath = \"{file}\"\n[store.memory]\n[handler.http]\nurl = \"{}\"\nbatch = {batch}\n\
             [pipeline]\nordering = \"none\"\nconcurrency = {}\n",
            server.url,
            CONCURRENCY * batch,
        ));
        stage.rate(&config, messages)
    };
    let (mut loops, mut singly, mut batches) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..stage.figures.rounds(5) {
        loops.push(stage.runtime.block_on(bare(&server.url, messages)));
        singly.push(once(1));
        batches.push(once(BATCH));
    }
    let variants = [("onceward", &singly[..]), ("onceward, batch = 50", &batches[..])];
    stage.figures.report("http, 128 at once", messages, ("loop over the client", &loops), &variants);
}
