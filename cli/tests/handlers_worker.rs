//! The worker handler with real processes: answers, misbehaviour, restarts, cancellation and shutdown.
#![allow(clippy::unwrap_used)]

mod handlers_support;

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use handlers_support::{FENCE, KEY, TOKEN, claimed, eventually, example, is_running, pids, program, scope};
use onceward::{Handler as _, HandlerError, Message, MessageBuilder, Verdict};
use onceward_cli::handlers::{Program, WorkerHandler, WorkerOptions};
use serde_json::{Value, json};

fn worker<const N: usize>(arguments: [&str; N]) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/handlers_support/worker.py");
    let mut command = vec!["python3".to_owned(), script.to_str().unwrap().to_owned()];
    command.extend(arguments.map(str::to_owned));
    Program::new(command).unwrap()
}

fn options(program: Program) -> WorkerOptions {
    let mut options = WorkerOptions::new(scope(), program);
    options.restart_delay = Duration::from_millis(1);
    options.grace = Duration::from_millis(300);
    options
}

fn handler() -> WorkerHandler {
    WorkerHandler::new(options(worker([])))
}

async fn ask(handler: &WorkerHandler, message: MessageBuilder) -> Result<Option<Bytes>, HandlerError> {
    let (_run, message) = claimed(message);
    tokio::time::timeout(Duration::from_secs(20), handler.handle(message)).await.expect("the handler returns")
}

async fn say(handler: &WorkerHandler, word: &str) -> Result<Option<Bytes>, HandlerError> {
    ask(handler, Message::builder(word.to_owned())).await
}

/// The number of the process that answers.
async fn pid(handler: &WorkerHandler) -> u32 {
    serde_json::from_slice(&say(handler, "pid").await.unwrap().unwrap()).unwrap()
}

#[tokio::test]
async fn a_worker_is_told_everything_about_its_message() {
    let message = Message::builder("echo \n\u{2028}")
        .header("h", "1")
        .header("raw", &b"\xff"[..])
        .message_id("m-1")
        .origin("orders".into());
    let result = ask(&handler(), message).await.unwrap().unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&result).unwrap(),
        json!({
            "id": 1, "key": KEY, "token": TOKEN, "scope": "billing", "attempt": 2, "fence": FENCE, "generation": 3,
            "message_id": "m-1", "origin": "orders", "headers": {"h": "1"}, "headers_base64": {"raw": "/w=="},
            "payload": "echo \n\u{2028}",
        })
    );
}

#[tokio::test]
async fn one_process_serves_message_after_message() {
    let handler = handler();
    let first = pid(&handler).await;
    for _ in 0..100 {
        assert_eq!(pid(&handler).await, first);
    }
}

#[tokio::test]
async fn a_mebibyte_with_nul_bytes_goes_through_unchanged() {
    let mut payload = "echo ".to_owned();
    payload.extend(std::iter::repeat_n("\0\u{1}ü\"\\\n", 1024 * 1024 / 7));
    let mut options = options(worker([]));
    options.result_limit = 10 * 1024 * 1024;
    let result = ask(&WorkerHandler::new(options), Message::builder(payload.clone())).await.unwrap().unwrap();
    let echoed: Value = serde_json::from_slice(&result).unwrap();
    // With every other byte escaped it would be three times as long: it goes as Base64.
    let encoded = echoed["payload_base64"].as_str().map(|text| STANDARD.decode(text));
    assert!(encoded == Some(Ok(payload.clone().into())), "{} bytes came back", result.len());

    // The same, too large to be kept: it is completed nevertheless, and the process is still good.
    let handler = handler();
    assert_eq!(ask(&handler, Message::builder(payload)).await.unwrap(), None);
    assert_eq!(say(&handler, "echo").await.unwrap().map(|_| ()), Some(()));
}

#[tokio::test]
async fn every_process_has_a_message_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(worker([]));
    options.processes = 3;
    let handler = WorkerHandler::new(options);
    let meet = format!("meet {} 3", dir.path().display());
    let (a, b, c) = tokio::join!(say(&handler, &meet), say(&handler, &meet), say(&handler, &meet));
    let mut pids = [a, b, c].map(|answered| answered.unwrap().unwrap());
    pids.sort();
    assert!(pids[0] != pids[1] && pids[1] != pids[2], "{pids:?}");
}

#[tokio::test]
async fn a_process_that_dies_fails_its_message_only() {
    let handler = handler();
    let first = pid(&handler).await;
    let error = say(&handler, "die of\x1b[31m old age").await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true));
    assert!(error.text().contains("exit status: 3"), "{error}");
    assert!(error.text().ends_with(": dying: of\\u{1b}[31m old age"), "{error}");
    assert_ne!(pid(&handler).await, first);

    let error = say(&handler, "abort").await.unwrap_err();
    assert!(error.text().contains("SIGABRT"), "{error}");
    pid(&handler).await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_understood_ends_the_process_and_says_what_was_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let handler = handler();
    let error = say(&handler, &format!("garbage {}", file.display())).await.unwrap_err();
    let wrote = pids(&file, 1).await[0];
    assert!(!is_running(wrote), "the process is over before the handler returns");
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true));
    assert!(
        error.text().contains("{'id': 1, 'ok': True}") && error.text().contains("standard error"),
        "{error}"
    );

    for (word, why) in [
        ("wrong-id", "answers request 2, which was not sent"),
        ("endless", "a line of more than 4194304 bytes"),
        ("close", "closed its standard output"),
    ] {
        let error = say(&handler, word).await.unwrap_err();
        assert!(error.text().contains(why), "{word}: {error}");
        assert_eq!(error.verdict(), Verdict::Retry, "{word}");
    }
    pid(&handler).await;
}

#[tokio::test]
async fn a_second_line_for_one_message_is_not_taken_for_the_next_ones_answer() {
    let handler = handler();
    for _ in 0..3 {
        let twice: u32 = serde_json::from_slice(&say(&handler, "twice").await.unwrap().unwrap()).unwrap();
        let echoed = say(&handler, "echo").await.unwrap().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&echoed).unwrap()["payload"], "echo");
        assert_eq!(pid(&handler).await, twice, "it did no harm");
    }
}

#[tokio::test]
async fn lines_that_are_no_answers_do_no_harm() {
    let handler = handler();
    let first = pid(&handler).await;
    // Blank lines, a stray print, a log line in JSON, then the answer with a carriage return behind it.
    assert_eq!(say(&handler, "chatty").await.unwrap().unwrap(), first.to_string());
    assert_eq!(pid(&handler).await, first);
}

#[tokio::test]
async fn a_worker_that_writes_before_it_reads_does_not_hold_the_handler_for_ever() {
    let handler = WorkerHandler::new(options(worker(["flood-first"])));
    let payload = format!("pid {}", "x".repeat(1024 * 1024));
    ask(&handler, Message::builder(payload)).await.unwrap();
}

#[tokio::test]
async fn a_process_that_ends_before_it_reads_its_request_uses_no_attempt() {
    for command in [
        program(["/bin/sh", "-c", "echo ImportError >&2; exit 1"]),
        program(["/bin/sh", "-c", "sleep 0.1; echo ImportError >&2; kill -KILL $$"]),
        program(["/bin/sh", "-c", "exec <&-; sleep 0.1; echo ImportError >&2; exit 1"]),
    ] {
        let handler = WorkerHandler::new(options(command));
        for size in [1, 300_000] {
            let error = ask(&handler, Message::builder(vec![b'x'; size])).await.unwrap_err();
            assert_eq!(
                (error.verdict(), error.is_outcome_unknown()),
                (Verdict::Unavailable, false),
                "{error}"
            );
            assert!(error.text().ends_with(": ImportError"), "{error}");
        }
    }
    // One that has read a part of it, or all of it.
    let part = WorkerHandler::new(options(program(["/bin/sh", "-c", "head -c 10 > /dev/null; exit 1"])));
    let error = ask(&part, Message::builder(vec![b'x'; 300_000])).await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, false), "{error}");
    let whole = WorkerHandler::new(options(program(["/bin/sh", "-c", "head -n 1 > /dev/null; exit 1"])));
    let error = ask(&whole, Message::builder("x")).await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true), "{error}");
}

#[tokio::test]
async fn the_start_of_a_process_does_not_count_as_handler_time() {
    let mut options = options(worker(["slow-start", "1.5"]));
    options.timeout = Duration::from_millis(700);
    let handler = WorkerHandler::new(options.clone());
    assert_eq!(pid(&handler).await, pid(&handler).await);
    // From then on it does.
    let error = say(&handler, "sleep 60").await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true), "{error}");
    assert!(error.text().contains("did not answer within 700ms"), "{error}");

    options.start_timeout = Duration::from_millis(200);
    let error = say(&WorkerHandler::new(options), "pid").await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false), "{error}");
    assert!(error.text().contains("start timeout"), "{error}");
}

#[tokio::test]
async fn a_worker_that_is_to_say_when_it_is_ready_gets_nothing_before() {
    let mut options = options(worker(["ready"]));
    options.wait_until_ready = true;
    options.processes = 2;
    let handler = WorkerHandler::new(options.clone());
    handler.start().await.unwrap();
    pid(&handler).await;

    options.program = worker([]);
    options.start_timeout = Duration::from_millis(500);
    let silent = WorkerHandler::new(options.clone());
    for error in [silent.start().await.unwrap_err(), say(&silent, "pid").await.unwrap_err()] {
        assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false), "{error}");
        assert!(error.text().contains("{\"ready\":true}"), "{error}");
    }

    options.program = program(["/bin/sh", "-c", "echo no module named billing >&2; exit 1"]);
    let error = WorkerHandler::new(options).start().await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false), "{error}");
    assert!(error.text().ends_with("before it was ready: no module named billing"), "{error}");
}

#[tokio::test]
async fn a_message_cancelled_while_its_process_starts_leaves_the_process_to_the_next_one() {
    let mut options = options(worker(["ready", "1"]));
    options.wait_until_ready = true;
    let handler = WorkerHandler::new(options);
    let (run, message) = claimed(Message::builder("pid"));
    let (handled, ()) = tokio::join!(handler.handle(message), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        run.cancel();
    });
    let error = handled.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false), "{error}");
    let echoed: Value = serde_json::from_slice(&say(&handler, "echo").await.unwrap().unwrap()).unwrap();
    assert_eq!(echoed["id"], 2, "the same process: the cancelled request had the first number");
}

#[tokio::test]
async fn a_cancelled_worker_is_asked_to_end_and_may_answer_before() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let mut options = options(worker([]));
    options.grace = Duration::from_secs(20);
    let handler = WorkerHandler::new(options);
    let (run, message) = claimed(Message::builder(format!("finish {}", file.display())));
    let handled = tokio::spawn({
        let handler = handler.clone();
        async move { handler.handle(message).await }
    });
    let first = pids(&file, 1).await[0];
    run.cancel();
    handled.await.unwrap().unwrap();
    assert!(!is_running(first));
    assert_ne!(pid(&handler).await, first);
}

#[tokio::test]
async fn a_worker_that_a_shutdown_has_ended_is_not_to_blame() {
    let options = options(worker([]));
    options.shutdown.cancel();
    let error = say(&WorkerHandler::new(options), "terminate").await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, true), "{error}");
    let error = say(&handler(), "terminate").await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true), "{error}");
}

#[tokio::test]
async fn a_cancelled_run_is_over_with_all_its_processes_before_the_handler_returns() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let mut options = options(worker([]));
    options.restart_delay = Duration::from_secs(3600);
    options.max_restart_delay = Duration::from_secs(3600);
    let handler = WorkerHandler::new(options);
    let (run, message) = claimed(Message::builder(format!("hang {}", file.display())));
    let handled = tokio::spawn({
        let handler = handler.clone();
        async move { handler.handle(message).await }
    });
    let pids = pids(&file, 2).await;
    assert!(pids.iter().all(|pid| is_running(*pid)));
    run.cancel();
    let error = handled.await.unwrap().unwrap_err();
    let running: Vec<_> = pids.iter().filter(|pid| is_running(**pid)).collect();
    assert!(running.is_empty(), "still running: {running:?}");
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true));
    // It was not the process's fault: the next one starts at once.
    assert_ne!(pid(&handler).await, pids[0]);
}

#[tokio::test]
async fn a_dropped_run_is_killed_with_all_its_processes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let handler = handler();
    let hang = format!("hang {}", file.display());
    let pids = tokio::select! {
        handled = say(&handler, &hang) => panic!("{handled:?}"),
        pids = pids(&file, 2) => pids,
    };
    for pid in pids {
        eventually("the processes are gone", || (!is_running(pid)).then_some(())).await;
    }
    pid(&handler).await;
}

#[tokio::test]
async fn a_message_that_waits_for_a_process_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let handler = handler();
    let hang = format!("hang {}", file.display());
    let waiting = async {
        pids(&file, 2).await;
        let (run, message) = claimed(Message::builder("pid"));
        run.cancel();
        handler.handle(message).await.unwrap_err()
    };
    let error = tokio::select! {
        handled = say(&handler, &hang) => panic!("{handled:?}"),
        error = waiting => error,
    };
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false));
}

#[tokio::test]
async fn a_process_that_ends_between_messages_costs_nobody_an_attempt() {
    let handler = handler();
    let first = pid(&handler).await;
    std::process::Command::new("kill").args(["-9", &first.to_string()]).status().unwrap();
    eventually("the process is gone", || (!is_running(first)).then_some(())).await;
    assert_ne!(pid(&handler).await, first);
}

#[tokio::test]
async fn restarts_wait_longer_each_time_and_can_be_cancelled() {
    let mut options = options(worker([]));
    options.restart_delay = Duration::from_millis(300);
    let handler = WorkerHandler::new(options);
    say(&handler, "die").await.unwrap_err();
    let begun = Instant::now();
    say(&handler, "die").await.unwrap_err();
    assert!(begun.elapsed() >= Duration::from_millis(280), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let (run, message) = claimed(Message::builder("pid"));
    let waiting = tokio::spawn({
        let handler = handler.clone();
        async move { handler.handle(message).await }
    });
    tokio::task::yield_now().await;
    run.cancel();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(!error.is_outcome_unknown() && begun.elapsed() < Duration::from_millis(500), "{error}");
    pid(&handler).await;
    assert!(begun.elapsed() >= Duration::from_millis(580), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn shutdown_lets_processes_end_and_kills_those_that_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bye");
    let polite = WorkerHandler::new(options(worker(["bye", file.to_str().unwrap()])));
    let first = pid(&polite).await;
    assert_eq!(polite.shut_down(Duration::from_secs(10)).await, 0);
    assert_eq!(pids(&file, 1).await, [first]);
    assert!(!is_running(first));
    let error = say(&polite, "pid").await.unwrap_err();
    assert!(error.text().contains("shutting down"), "{error}");

    let file = dir.path().join("stubborn");
    let stubborn = WorkerHandler::new(options(worker(["ignore-end", file.to_str().unwrap()])));
    stubborn.start().await.unwrap();
    let pid = pids(&file, 1).await[0];
    assert_eq!(stubborn.shut_down(Duration::from_millis(50)).await, 1);
    assert!(!is_running(pid));
}

#[tokio::test]
async fn a_dropped_handler_leaves_no_process() {
    let handler = handler();
    let pid = pid(&handler).await;
    drop(handler);
    eventually("the process is gone", || (!is_running(pid)).then_some(())).await;
}

#[tokio::test]
async fn a_program_that_cannot_start_says_why_and_uses_no_attempt() {
    let handler = WorkerHandler::new(options(program(["./no-such-worker"])));
    assert!(handler.check().unwrap_err().to_string().contains("command"));
    let error = say(&handler, "pid").await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false));
    assert!(error.text().contains("./no-such-worker"), "{error}");
}

#[tokio::test]
async fn the_example_adds_up_orders_and_refuses_what_is_none() {
    let example = program(["python3", example("worker.py").to_str().unwrap()]);
    let handler = WorkerHandler::new(options(example));
    let order = |amount: u32| Message::builder(json!({"customer": "c1", "amount": amount}).to_string());
    ask(&handler, order(5)).await.unwrap();
    let result = ask(&handler, order(7)).await.unwrap().unwrap();
    assert_eq!(result, r#"{"customer": "c1", "total": 12, "attempt": 2}"#);
    for payload in [&b"twelve"[..], b"\xff\xfe", b"{}"] {
        let error = ask(&handler, Message::builder(payload)).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Permanent, "{error}");
        assert!(error.text().starts_with("not an order"), "{error}");
    }
}
