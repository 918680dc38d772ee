//! Worker processes that have several messages at once: answers in any order, and whom a death, a late run or an invalid answer
//! concerns.
#![allow(clippy::unwrap_used)]

mod handlers_support;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use handlers_support::{eventually, example, is_running, message_with_key, pids, program, scope};
use onceward::{Handler as _, HandlerError, Verdict};
use onceward_cli::handlers::{Program, WorkerHandler, WorkerOptions};
use serde_json::{Value, json};

type Answer = Result<Option<Bytes>, HandlerError>;

fn many<const N: usize>(arguments: [&str; N]) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/handlers_support/many.py");
    let mut command = vec!["python3".to_owned(), script.to_str().unwrap().to_owned()];
    command.extend(arguments.map(str::to_owned));
    Program::new(command).unwrap()
}

/// One process with so many requests at once.
fn options(in_flight: u32) -> WorkerOptions {
    let mut options = WorkerOptions::new(scope(), many([]));
    options.in_flight = in_flight;
    options.restart_delay = Duration::from_millis(1);
    options.grace = Duration::from_millis(2_000);
    options
}

async fn say(handler: &WorkerHandler, text: &str) -> Answer {
    let (_run, message) = message_with_key(text);
    tokio::time::timeout(Duration::from_secs(20), handler.handle(message)).await.expect("the handler returns")
}

async fn all<const N: usize>(handler: &WorkerHandler, texts: [&str; N]) -> [Answer; N] {
    join_all(texts.map(|text| say(handler, text))).await.try_into().unwrap()
}

fn number(answer: &Answer) -> u32 {
    serde_json::from_slice(answer.as_ref().unwrap().as_ref().unwrap()).unwrap()
}

fn verdict(answer: &Answer) -> (Verdict, bool) {
    let error = answer.as_ref().unwrap_err();
    (error.verdict(), error.is_outcome_unknown())
}

const INNOCENT: (Verdict, bool) = (Verdict::Unavailable, true);
const BLAMED: (Verdict, bool) = (Verdict::Retry, true);

#[tokio::test]
async fn a_process_has_as_many_requests_at_once_as_it_may_and_answers_in_any_order() {
    let handler = WorkerHandler::new(options(3));
    // They are answered only once there are three.
    let pids = all(&handler, ["meet 3"; 3]).await.map(|one| number(&one));
    assert!(pids[0] == pids[1] && pids[1] == pids[2], "{pids:?}");
    let texts: Vec<_> = (0..30).map(|n| format!("sleep 0.0{n}")).collect();
    let answers = join_all(texts.iter().map(|text| say(&handler, text))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(number(&say(&handler, "most").await), 3, "and never more");
}

#[tokio::test]
async fn answers_are_found_by_their_number() {
    let handler = WorkerHandler::new(options(16));
    handler.start().await.unwrap();
    let texts: Vec<_> = (0..200).map(|n| format!("echo {n}")).collect();
    for (text, answer) in texts.iter().zip(join_all(texts.iter().map(|text| say(&handler, text))).await) {
        let echoed: Value = serde_json::from_slice(&answer.unwrap().unwrap()).unwrap();
        assert_eq!(echoed["payload"], **text);
    }
}

#[tokio::test]
async fn a_death_with_several_messages_blames_none_and_each_runs_alone_next() {
    let handler = WorkerHandler::new(options(3));
    let texts = ["sleep 2", "die 0.2", "sleep 2.0"];
    let died = all(&handler, texts).await;
    for answer in &died {
        assert_eq!(verdict(answer), INNOCENT, "{answer:?}");
        let text = answer.as_ref().unwrap_err().text();
        assert!(text.contains("exit status: 3") && text.contains("one of 3 messages"), "{text}");
    }
    // Alone, the one that ends its process is blamed, and its neighbours are not concerned.
    let (killer, other, third) =
        tokio::join!(say(&handler, texts[1]), say(&handler, "most"), say(&handler, "sleep 0"));
    assert_eq!(verdict(&killer), BLAMED, "{killer:?}");
    assert!(other.is_ok() && third.is_ok(), "{other:?} {third:?}");
    // Innocent, and from then on among others.
    say(&handler, texts[0]).await.unwrap();
    let (again, meeting) = tokio::join!(say(&handler, texts[0]), say(&handler, "meet 2"));
    assert_eq!(number(&again), number(&meeting));
}

#[tokio::test]
async fn a_suspect_has_a_process_for_itself() {
    let handler = WorkerHandler::new(options(4));
    for answer in all(&handler, ["die 0.2", "echo", "sleep 1", "sleep 1.0"]).await.iter().skip(2) {
        assert_eq!(verdict(answer), INNOCENT);
    }
    let others: Vec<_> = (0..20).map(|n| format!("sleep 0.0{n}")).collect();
    let (others, first, second, _) = tokio::join!(
        join_all(others.iter().map(|text| say(&handler, text))),
        say(&handler, "sleep 1"),
        say(&handler, "sleep 1.0"),
        async {
            let (killer, most) = tokio::join!(say(&handler, "die 0.2"), say(&handler, "most"));
            assert_eq!(verdict(&killer), BLAMED, "{killer:?}");
            most.unwrap();
        }
    );
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
}

#[tokio::test]
async fn a_request_that_was_not_read_is_not_concerned_by_a_death() {
    let mut options = options(2);
    options.program = many(["slow-reader"]);
    let handler = WorkerHandler::new(options);
    let [first, second] = all(&handler, ["a", "b"]).await;
    assert_eq!(verdict(&first), BLAMED, "the only one that was read: {first:?}");
    assert_eq!(verdict(&second), (Verdict::Unavailable, false), "{second:?}");
}

#[tokio::test]
async fn a_late_run_ends_its_process_and_neighbours_may_answer_before() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let mut options = options(3);
    options.timeout = Duration::from_millis(1_000);
    let handler = WorkerHandler::new(options);
    handler.start().await.unwrap();
    let hang = format!("touch-and-sleep {}", file.display());
    let (late, (soon, later)) = tokio::join!(say(&handler, &hang), async {
        let first = pids(&file, 1).await[0];
        tokio::time::sleep(Duration::from_millis(700)).await;
        let (soon, later) = tokio::join!(say(&handler, "sleep 0.7"), say(&handler, "sleep 0.8"));
        assert_eq!(number(&soon), first);
        (soon, later)
    });
    assert_eq!(verdict(&late), BLAMED, "{late:?}");
    let error = late.unwrap_err();
    assert!(error.is_timed_out() && error.text().contains("did not answer within 1s"), "{error}");
    assert!(soon.is_ok() && later.is_ok(), "{soon:?} {later:?}");
    let first = pids(&file, 1).await[0];
    assert!(!is_running(first));
}

#[tokio::test]
async fn neighbours_that_do_not_answer_in_the_grace_use_no_attempt_and_others_get_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let handler = WorkerHandler::new(options(3));
    let (run, hanging) = message_with_key(&format!("touch-and-sleep {}", file.display()));
    let cancelled = tokio::spawn({
        let handler = handler.clone();
        async move { handler.handle(hanging).await }
    });
    let first = pids(&file, 1).await[0];
    let (neighbour, meanwhile) = tokio::join!(say(&handler, "sleep 10"), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        run.cancel();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let other = say(&handler, "sleep 0").await;
        assert!(is_running(first), "it has some time left");
        other
    });
    let cancelled = cancelled.await.unwrap();
    assert_eq!((verdict(&cancelled), verdict(&neighbour)), (BLAMED, INNOCENT), "{cancelled:?} {neighbour:?}");
    assert!(!is_running(first));
    assert_ne!(number(&meanwhile), first);
}

#[tokio::test]
async fn an_invalid_answer_blames_its_own_message_only() {
    let handler = WorkerHandler::new(options(3));
    let [wrong, first, second] = all(&handler, ["wrong 0.3", "sleep 5", "sleep 5.0"]).await;
    assert_eq!(verdict(&wrong), BLAMED, "{wrong:?}");
    assert_eq!((verdict(&first), verdict(&second)), (INNOCENT, INNOCENT));
}

#[tokio::test]
async fn a_run_that_blocks_its_process_makes_no_neighbour_lose_an_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let block = format!("touch-and-block {}", file.display());
    let mut options = options(3);
    options.timeout = Duration::from_millis(1_000);
    let handler = WorkerHandler::new(options);
    handler.start().await.unwrap();
    // All are read before the process is blocked, and are late together.
    let [first, second, blocking] = all(&handler, ["sleep 1.5", "sleep 1.50", &block]).await;
    for answer in [first, second, blocking] {
        assert_eq!(verdict(&answer), INNOCENT, "{answer:?}");
    }
    assert_eq!(verdict(&say(&handler, &block).await), BLAMED);
}

#[tokio::test]
async fn messages_behind_a_blocked_process_go_to_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let block = format!("touch-and-block {}", file.display());
    let mut options = options(64);
    options.timeout = Duration::from_millis(1_500);
    let handler = WorkerHandler::new(options);
    let texts: Vec<_> = (0..40).map(|n| format!("echo {n} {}", "x".repeat(3_000))).collect();
    let (blocking, answers) = tokio::join!(say(&handler, &block), async {
        pids(&file, 1).await;
        join_all(texts.iter().map(|text| say(&handler, text))).await
    });
    assert_eq!(verdict(&blocking), BLAMED, "the only one that was read: {blocking:?}");
    let failed: Vec<_> = answers.iter().filter(|answer| answer.is_err()).collect();
    assert!(failed.iter().all(|answer| verdict(answer) == (Verdict::Unavailable, false)), "{failed:?}");
    // A pipe has 16 pages, each of which holds one of these lines.
    assert!(failed.len() <= 16, "{}", failed.len());
}

#[tokio::test]
async fn a_message_that_finds_no_room_in_time_has_not_begun() {
    let mut options = options(2);
    options.start_timeout = Duration::from_secs(4);
    let handler = WorkerHandler::new(options);
    handler.start().await.unwrap();
    for answer in all(&handler, ["die 0.2", "sleep 1"]).await {
        assert_eq!(verdict(&answer), INNOCENT);
    }
    let (long, suspect) = tokio::join!(say(&handler, "sleep 8"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        say(&handler, "sleep 1").await
    });
    assert!(long.is_ok(), "{long:?}");
    assert_eq!(verdict(&suspect), (Verdict::Unavailable, false), "{suspect:?}");
    assert!(suspect.unwrap_err().text().contains("start timeout of 4s"));
    say(&handler, "sleep 1").await.unwrap();
}

#[tokio::test]
async fn a_dropped_run_ends_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let handler = WorkerHandler::new(options(2));
    let hang = format!("touch-and-sleep {}", file.display());
    let neighbour = tokio::spawn({
        let handler = handler.clone();
        async move { say(&handler, "sleep 10").await }
    });
    let first = tokio::select! {
        handled = say(&handler, &hang) => panic!("{handled:?}"),
        pids = pids(&file, 1) => pids[0],
    };
    eventually("the process is gone", || (!is_running(first)).then_some(())).await;
    assert_eq!(verdict(&neighbour.await.unwrap()), INNOCENT);
    say(&handler, "echo").await.unwrap();
}

#[tokio::test]
async fn a_process_that_waited_longer_than_its_start_may_take_gets_its_first_request() {
    let mut options = options(2);
    options.start_timeout = Duration::from_secs(2);
    let handler = WorkerHandler::new(options);
    handler.start().await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    say(&handler, "echo").await.unwrap();
}

#[tokio::test]
async fn shutdown_waits_for_all_messages_of_a_process() {
    let handler = WorkerHandler::new(options(8));
    let texts: Vec<_> = (0..8).map(|n| format!("sleep 0.5{n}")).collect();
    let running = join_all(texts.iter().map(|text| say(&handler, text)));
    let (answers, killed) = tokio::join!(running, async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        handler.shut_down(Duration::from_secs(10)).await
    });
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(killed, 0);
}

fn batches(batch: u32) -> WorkerHandler {
    let mut options = options(1);
    options.batch = batch;
    WorkerHandler::new(options)
}

#[tokio::test]
async fn messages_that_are_ready_together_share_a_line() {
    let handler = batches(50);
    // They are answered only once there are fifty.
    let texts: Vec<_> = (0..50).map(|_| "meet 50".to_owned()).collect();
    let answers = join_all(texts.iter().map(|text| say(&handler, text))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let texts: Vec<_> = (0..120).map(|n| format!("echo {n}")).collect();
    for (text, answer) in texts.iter().zip(join_all(texts.iter().map(|text| say(&handler, text))).await) {
        let echoed: Value = serde_json::from_slice(&answer.unwrap().unwrap()).unwrap();
        assert_eq!(echoed["payload"], **text);
    }
    assert_eq!(number(&say(&handler, "most").await), 50);
    let [refused, singly, done] = all(&handler, ["refuse", "singly", "echo"]).await;
    assert_eq!(verdict(&refused), (Verdict::Permanent, false));
    assert!(singly.is_ok() && done.is_ok(), "{singly:?} {done:?}");
}

#[tokio::test]
async fn a_line_of_answers_may_hold_the_largest_result_of_each() {
    let mut options = options(1);
    (options.batch, options.result_limit) = (50, 1_100_000);
    let handler = WorkerHandler::new(options);
    let answers = all(&handler, ["long 1000000"; 6]).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(Option::is_some)));
}

#[tokio::test]
async fn a_message_left_out_of_the_answers_is_blamed_and_the_others_are_done() {
    let handler = batches(50);
    let [omitted, first, second] = all(&handler, ["omit", "echo 1", "echo 2"]).await;
    assert_eq!(verdict(&omitted), BLAMED);
    assert!(omitted.unwrap_err().text().contains("left this message out"));
    assert!(first.is_ok() && second.is_ok());
    let [extra, first] = all(&handler, ["extra", "echo 1"]).await;
    assert!(extra.is_ok() && first.is_ok(), "one answer too many does not undo the others");
}

#[tokio::test]
async fn a_batch_that_ends_its_process_or_is_late_is_taken_apart() {
    let mut options = options(1);
    (options.batch, options.timeout) = (50, Duration::from_millis(700));
    let handler = WorkerHandler::new(options);
    handler.start().await.unwrap();
    let [killer, other] = all(&handler, ["die 0.2", "sleep 0.3"]).await;
    assert_eq!((verdict(&killer), verdict(&other)), (INNOCENT, INNOCENT));
    let [killer, other] = all(&handler, ["die 0.2", "sleep 0.3"]).await;
    assert_eq!(verdict(&killer), BLAMED);
    assert!(other.is_ok(), "{other:?}");
    let [late, other] = all(&handler, ["sleep 300", "sleep 0.1"]).await;
    assert_eq!((verdict(&late), verdict(&other)), (INNOCENT, INNOCENT), "{late:?} {other:?}");
    let [late, other] = all(&handler, ["sleep 300", "sleep 0.1"]).await;
    assert_eq!(verdict(&late), BLAMED, "{late:?}");
    assert!(other.is_ok(), "{other:?}");
}

#[tokio::test]
async fn the_examples_handle_many_messages_at_once() {
    let node = program(["node", example("worker_many.mjs").to_str().unwrap()]);
    let python = program(["python3", example("worker_asyncio.py").to_str().unwrap()]);
    for example in [python, node] {
        let mut options = options(20);
        options.program = example;
        options.wait_until_ready = true;
        let handler = WorkerHandler::new(options);
        handler.start().await.unwrap();
        let begun = Instant::now();
        let orders: Vec<_> = (0..20).map(|n| json!({"id": n, "amount": 5}).to_string()).collect();
        let answers = join_all(orders.iter().map(|order| say(&handler, order))).await;
        for (n, answer) in answers.into_iter().enumerate() {
            let result: Value = serde_json::from_slice(&answer.unwrap().unwrap()).unwrap();
            assert_eq!(result, json!({"order": n, "charged": 5}));
        }
        // Each waits for 0.1 s, as for an answer over the network.
        assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
        assert_eq!(verdict(&say(&handler, "twelve").await), (Verdict::Permanent, false));
        assert_eq!(handler.shut_down(Duration::from_secs(10)).await, 0);
    }
}
