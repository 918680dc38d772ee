//! The stdout handler with real pipes.
#![allow(clippy::unwrap_used)]

mod handlers_support;

use std::io::{BufRead as _, BufReader, Read as _};

use handlers_support::claimed;
use onceward::{Handler as _, Message, Verdict};
use onceward_cli::handlers::StdoutHandler;

#[tokio::test]
async fn each_payload_becomes_a_line_of_its_own() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let handler = StdoutHandler::to(writer);
    for payload in [&b"one"[..], b"", b"\0\xff"] {
        let (_run, message) = claimed(Message::builder(payload));
        handler.handle(message).await.unwrap();
    }
    drop(handler);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"one\n\n\0\xff\n");
}

#[tokio::test]
async fn lines_larger_than_the_pipe_do_not_mix_and_a_slow_reader_blocks_nobody_else() {
    let (reader, writer) = std::io::pipe().unwrap();
    let handler = StdoutHandler::to(writer);
    let tasks: Vec<_> = (b'a'..b'i')
        .map(|letter| {
            let handler = handler.clone();
            let (run, message) = claimed(Message::builder(vec![letter; 1024 * 1024]));
            tokio::spawn(async move {
                handler.handle(message).await.unwrap();
                drop(run);
            })
        })
        .collect();
    drop(handler);
    // The test's runtime has one thread: it comes here only if the writers do not hold it.
    tokio::task::yield_now().await;
    let read = tokio::task::spawn_blocking(move || {
        BufReader::new(reader).lines().map(|line| line.unwrap().into_bytes()).collect::<Vec<_>>()
    });
    for task in tasks {
        task.await.unwrap();
    }
    let mut lines = read.await.unwrap();
    lines.sort();
    let wanted: Vec<_> = (b'a'..b'i').map(|letter| vec![letter; 1024 * 1024]).collect();
    assert!(lines == wanted, "{} lines", lines.len());
}

#[tokio::test]
async fn what_was_not_flushed_is_not_done() {
    struct Refusing;
    impl std::io::Write for Refusing {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Err(std::io::Error::other("disk full"))
        }
    }
    let (_run, message) = claimed(Message::builder("x"));
    let error = StdoutHandler::to(Refusing).handle(message).await.unwrap_err();
    assert_eq!(error.text(), "cannot write the payload to standard output: disk full");
}

#[tokio::test]
async fn a_reader_that_has_gone_away_is_an_error_and_not_the_end_of_the_program() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (_run, message) = claimed(Message::builder("x"));
    let error = StdoutHandler::to(writer).handle(message).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Retry);
    assert!(error.text().contains("its reader has gone away"), "{error}");
}

#[tokio::test]
async fn a_run_cancelled_beforehand_writes_nothing() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let handler = StdoutHandler::to(writer);
    let (run, message) = claimed(Message::builder("x"));
    run.cancel();
    handler.handle(message).await.unwrap_err();
    drop(handler);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"");
}
