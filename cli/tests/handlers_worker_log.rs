//! Checks the log lines for a worker process's standard error.
//!
//! A process of its own: where another thread logs by the same line for the first time just as the subscriber is set,
//! tracing takes that line for one without a subscriber, and keeps to it.
#![allow(clippy::unwrap_used)]

mod handlers_support;

use std::path::Path;
use std::sync::{Arc, Mutex};

use handlers_support::{claimed, eventually, program, scope};
use onceward::{Handler as _, Message};
use onceward_cli::handlers::{WorkerHandler, WorkerOptions};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn standard_error_goes_to_the_log_in_bounded_lines() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/handlers_support/worker.py");
    let command = program(["python3", script.to_str().unwrap()]);
    let handler = WorkerHandler::new(WorkerOptions::new(scope(), command));
    let (_run, message) = claimed(Message::builder("log"));
    handler.handle(message).await.unwrap();
    let line = eventually("the line is in the log", || {
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines().find(|line| line.contains("[31mfine")).map(str::to_owned)
    })
    .await;
    assert!(line.contains("process=0") && line.contains('…') && line.len() < 1500, "{line}");
}
