//! The stdout handler with real pipes.
#![allow(clippy::unwrap_used)]

mod handlers_support;

use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeWriter, Read as _};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use handlers_support::claimed;
use onceward::{Handler as _, Message, Verdict};
use onceward_cli::handlers::StdoutHandler;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn each_payload_becomes_a_line_of_its_own() {
    for is_file in [true, false] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let handler = if is_file { to_file(writer) } else { StdoutHandler::to(writer) };
        for payload in [&b"one"[..], b"", b"\0\xff"] {
            let (_run, message) = claimed(Message::builder(payload));
            handler.handle(message).await.unwrap();
        }
        drop(handler);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"one\n\n\0\xff\n");
    }
}

/// The pipe as a program has it as its standard output.
fn to_file(writer: PipeWriter) -> StdoutHandler {
    StdoutHandler::to_file(File::from(OwnedFd::from(writer)))
}

#[tokio::test]
async fn a_file_gets_all_lines_of_runs_side_by_side() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let handler = StdoutHandler::to_file(file.reopen().unwrap());
    let runs = (0..1_000).map(|number| {
        let handler = handler.clone();
        async move {
            let (_run, message) = claimed(Message::builder(format!("{number:03}")));
            handler.handle(message).await.unwrap();
        }
    });
    futures_util::future::join_all(runs).await;
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let wanted: Vec<_> = (0..1_000).map(|number| format!("{number:03}")).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted, "in the order in which they began");
}

#[tokio::test]
async fn a_run_that_is_dropped_before_it_writes_leaves_that_to_the_others() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let handler = StdoutHandler::to_file(file.reopen().unwrap());
    let ((_first_run, first), (_second_run, second)) =
        (claimed(Message::builder("first")), claimed(Message::builder("second")));
    let (mut first, mut second) = (Box::pin(handler.handle(first)), Box::pin(handler.handle(second)));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(first);
    second.await.unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "second\n");
}

#[tokio::test]
async fn lines_larger_than_the_pipe_do_not_mix_and_a_slow_reader_blocks_nobody_else() {
    let handlers: [fn(PipeWriter) -> StdoutHandler; 2] = [to_file, |writer| StdoutHandler::to(writer)];
    for handler in handlers {
        all_are_written(handler, 8, 1024 * 1024).await;
        // More than a pipe has room for, each of which has room in an empty one.
        all_are_written(handler, 2_000, 100).await;
    }
}

async fn all_are_written(handler: fn(PipeWriter) -> StdoutHandler, count: usize, bytes: usize) {
    let (reader, writer) = std::io::pipe().unwrap();
    let handler = handler(writer);
    let line = |number: usize| format!("{number:04}").into_bytes().repeat(bytes / 4);
    let tasks: Vec<_> = (0..count)
        .map(|number| {
            let handler = handler.clone();
            let (run, message) = claimed(Message::builder(line(number)));
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
    let wanted: Vec<_> = (0..count).map(line).collect();
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
async fn a_reader_that_has_gone_away_ends_the_run_and_uses_no_attempt() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (_run, message) = claimed(Message::builder("x"));
    let closed = CancellationToken::new();
    let error = StdoutHandler::to(writer).closes(closed.clone()).handle(message).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Unavailable);
    assert!(error.text().contains("its reader has closed it"), "{error}");
    assert!(closed.is_cancelled());
}

/// Takes so many bytes, one write for all of them, and then fails a number of times before it takes more.
struct Failing {
    room: usize,
    kind: std::io::ErrorKind,
    times: u32,
    taken: Arc<Mutex<Vec<u8>>>,
}

impl std::io::Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.room == 0 && self.times > 0 {
            self.times -= 1;
            return Err(self.kind.into());
        }
        let taken = if self.room > 0 { bytes.len().min(self.room) } else { bytes.len() };
        self.room = self.room.saturating_sub(taken);
        self.taken.lock().unwrap().extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_leaves_no_two_messages_on_one_line() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let full = std::io::ErrorKind::StorageFull;
    let handler = StdoutHandler::to(Failing { room: 6, kind: full, times: 2, taken: Arc::clone(&taken) });
    let (_run, message) = claimed(Message::builder("one"));
    handler.handle(message).await.unwrap();
    let (_run, message) = claimed(Message::builder("two"));
    for _ in 0..2 {
        let error = handler.handle(message.clone()).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Unavailable, "{error}");
    }
    handler.handle(message).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&taken.lock().unwrap()), "one\ntw\ntwo\n");
}

#[tokio::test]
async fn a_pipe_without_room_is_waited_for() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let full = std::io::ErrorKind::WouldBlock;
    let handler = StdoutHandler::to(Failing { room: 2, kind: full, times: 3, taken: Arc::clone(&taken) });
    let (_run, message) = claimed(Message::builder("one"));
    handler.handle(message).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&taken.lock().unwrap()), "one\n");
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

/// Counts writes and flushes, and keeps each write waiting until the test drops the sender.
struct Counting {
    calls: Arc<Mutex<Vec<String>>>,
    go: std::sync::mpsc::Receiver<()>,
}

impl std::io::Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.calls.lock().unwrap().push(String::from_utf8_lossy(bytes).into_owned());
        let _ = self.go.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.calls.lock().unwrap().push("flush".to_owned());
        Ok(())
    }
}

#[tokio::test]
async fn what_is_ready_together_takes_one_write_and_one_flush() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (go, wait) = std::sync::mpsc::channel();
    let handler = StdoutHandler::to(Counting { calls: Arc::clone(&calls), go: wait });
    let mut tasks = Vec::new();
    for payload in ["one", "two", "cancelled", "three"] {
        let (run, message) = claimed(Message::builder(payload));
        let handler = handler.clone();
        if tasks.len() == 1 {
            // The first line is being written, so that the others wait for it.
            while calls.lock().unwrap().is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
        tasks.push(tokio::spawn(async move {
            if payload == "cancelled" {
                run.cancel();
            }
            let result = handler.handle(message).await;
            drop(run);
            result.is_ok()
        }));
        tokio::task::yield_now().await;
    }
    drop(go);
    let mut ended = Vec::new();
    for task in tasks {
        ended.push(task.await.unwrap());
    }
    assert_eq!(ended, [true, true, false, true]);
    assert_eq!(*calls.lock().unwrap(), ["one\n", "flush", "two\nthree\n", "flush"]);
}

#[tokio::test]
async fn an_error_is_that_of_its_line_and_those_before_it_are_done() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let full = std::io::ErrorKind::StorageFull;
    let handler = StdoutHandler::to(Failing { room: 6, kind: full, times: 1, taken: Arc::clone(&taken) });
    let runs: Vec<_> = ["one", "two", "three"].map(|payload| claimed(Message::builder(payload))).into();
    let results = futures_util::future::join_all(
        runs.iter().map(|(_, message)| async { handler.handle(message.clone()).await.is_ok() }),
    );
    assert_eq!(results.await, [true, false, true]);
    assert_eq!(String::from_utf8_lossy(&taken.lock().unwrap()), "one\ntw\nthree\n");
}
