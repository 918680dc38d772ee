//! Transforms on a real broker and on the client's mock: readers of committed records see each result
//! once, also when commits are rejected or not answered, or another process takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onceward::adapter::Consumer;
use onceward::{ErrorKind, HandlerError, Message, Outgoing};
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};

use crate::support::{LIMIT, Topic, create, create_with, take, text, unique, until};
use crate::transform_stage::{Stage, on_mock, outgoing, payload, sorted, until_all_ran};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_and_offsets_are_committed_together_in_batches() {
    let stage = Stage::new(2).await;
    stage.input.fill(500).await;
    let running = stage.start(stage.config());
    stage.input.wait_committed(&[500, 500]).await;
    assert_eq!(stage.results(1000).await, sorted(2, 500));
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.produced, summary.unknown), (1000, 1000, 0));
    assert!(summary.transactions < 100, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_tried_again_in_place_and_end_as_letters_in_the_same_transaction() {
    let stage = Stage::new(1).await;
    stage.input.fill(10).await;
    let dead = format!("{}.dead", stage.input.name);
    create(&stage.input.bootstrap, &dead, 1).await;
    let dead_topic = Topic::made(stage.input.bootstrap.clone(), dead.clone(), 1);
    let mut config = stage.config();
    config.dead_letters = Some(dead);
    config.retry.max_attempts = 3;
    config.retry.backoff.initial = Duration::from_millis(1);
    let (to, runs) = (stage.output.name.clone(), Arc::clone(&stage.runs));
    let running = stage.start_with(config, move |message: Message| {
        let own = payload(&message);
        let run = *runs.lock().unwrap().entry(own.clone()).and_modify(|runs| *runs += 1).or_insert(1);
        let made = match (own.as_str(), run) {
            ("0:3", 1) => Err(HandlerError::retry("not yet")),
            ("0:5", _) => Err(HandlerError::permanent("never")),
            ("0:7", _) => panic!("on purpose"),
            ("0:8", _) => {
                Ok(vec![Outgoing { payload: vec![0; 2_000_000].into(), ..outgoing(&to, &message) }])
            }
            _ => Ok(vec![outgoing(&to, &message)]),
        };
        async move { made }
    });
    stage.input.wait_committed(&[10]).await;
    assert_eq!(stage.results(7).await, ["0:0", "0:1", "0:2", "0:3", "0:4", "0:6", "0:9"]);
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.produced, summary.dead_lettered), (10, 7, 3));
    assert_eq!(summary.aborted, 1, "the transaction with the record that cannot be sent");
    let runs = stage.runs.lock().unwrap().clone();
    assert_eq!((runs["0:3"], runs["0:7"]), (2, 3));
    let mut reader = dead_topic.open().await;
    let letters = take(&mut reader, 3).await;
    for (letter, (own, reason)) in
        letters.iter().zip([("0:5", "permanent"), ("0:7", "attempts-exhausted"), ("0:8", "permanent")])
    {
        assert_eq!(
            (text(letter).as_str(), &letter.message.header("onceward-reason").unwrap()[..]),
            (own, reason.as_bytes())
        );
        let position = letter.message.header("onceward-position").unwrap();
        assert!(position.ends_with(own.as_bytes()), "{position:?}");
    }
    reader.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_topic_for_letters_a_failure_for_good_ends_the_run_and_commits_nothing() {
    let stage = Stage::new(1).await;
    stage.input.fill(3).await;
    let running =
        stage.start_with(stage.config(), |_: Message| async { Err(HandlerError::permanent("never")) });
    let error = tokio::time::timeout(LIMIT, running.task).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(stage.input.committed().await[0] <= 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_of_two_with_the_same_id_is_fenced_and_ends() {
    let stage = Stage::new(2).await;
    stage.input.fill(50).await;
    let first = stage.start(stage.config());
    stage.input.wait_committed(&[50, 50]).await;
    let second = stage.start(stage.config());
    until("the second has started", || {
        // It takes the id over when it starts; the first learns of it with its next transaction.
        Arc::strong_count(&stage.runs) == 3
    })
    .await;
    let mut sent = 50;
    let mut first = first.task;
    let fenced = loop {
        stage.input.fill(5).await;
        sent += 5;
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(200), &mut first).await {
            break ended.unwrap().unwrap_err();
        }
        assert!(sent < 5000, "it was never fenced");
    };
    assert_eq!(fenced.kind(), ErrorKind::Internal, "{fenced}");
    let mut results = Vec::new();
    let mut reader = stage.output.open().await;
    // `fill` begins at 0 each time.
    let expected = sent * 2;
    while results.len() < expected {
        results.extend(take(&mut reader, 1).await.iter().map(text));
    }
    second.stop().await;
    assert_eq!((results.len(), reader.is_idle().await), (expected, Some(true)));
    reader.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_transformation_keeps_its_partitions_and_runs_once() {
    let stage = Stage::new(2).await;
    stage.input.fill(5).await;
    let mut config = stage.config();
    config.commit_timeout = Duration::from_secs(2);
    config.source.connection.properties.insert("max.poll.interval.ms".into(), "6000".into());
    let (to, runs, slow) = (stage.output.name.clone(), Arc::clone(&stage.runs), AtomicU32::new(0));
    let running = stage.start_with(config, move |message: Message| {
        *runs.lock().unwrap().entry(payload(&message)).or_default() += 1;
        let made = outgoing(&to, &message);
        let long = slow.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            if long {
                tokio::time::sleep(Duration::from_secs(9)).await;
            }
            Ok(vec![made])
        }
    });
    stage.input.wait_committed(&[5, 5]).await;
    assert_eq!(stage.results(10).await, sorted(2, 5));
    assert!(stage.runs.lock().unwrap().values().all(|runs| *runs == 1), "{:?}", stage.runs);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_are_refused_abort_the_transaction_and_the_batch_runs_again() {
    let (cluster, stage, config) = on_mock(10).await;
    cluster.request_errors(Api::TxnOffsetCommit, &[Answer::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION]);
    let running = stage.start(config);
    until_all_ran(&stage, 10, 2).await;
    let summary = running.stop().await;
    assert_eq!((summary.aborted, summary.unknown, summary.records), (1, 0, 10), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_commit_without_an_answer_a_new_producer_goes_on_where_the_group_stands() {
    let (cluster, stage, config) = on_mock(10).await;
    // Refused for longer than it is asked.
    cluster.request_errors(Api::EndTxn, &[Answer::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS; 1000]);
    let running = stage.start(config);
    until_all_ran(&stage, 10, 2).await;
    cluster.clear_request_errors(Api::EndTxn);
    let summary = running.stop().await;
    assert!(summary.unknown >= 1 && summary.aborted == 0, "{summary:?}");
    assert_eq!(summary.records, 10, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_recreated_ends_the_run_and_the_next_one_transforms_all_of_the_new_one() {
    let stage = Stage::new(1).await;
    stage.input.fill(5).await;
    let running = stage.start(stage.config());
    stage.input.wait_committed(&[5]).await;
    stage.input.recreate(1).await;
    stage.input.fill(20).await;
    let ended = tokio::time::timeout(LIMIT, running.task).await.unwrap().unwrap();
    assert!(ended.is_err(), "{ended:?}");
    let running = stage.start(stage.config());
    until("all of the new topic", || {
        let runs = stage.runs.lock().unwrap();
        // The first five names are those of the old topic as well.
        (0..20).all(|number| runs.get(&format!("0:{number}")).is_some_and(|own| number >= 5 || *own >= 2))
    })
    .await;
    stage.input.wait_committed(&[20]).await;
    running.stop().await;
}

/// A record of so many bytes fails for good, and its letter does not fit into a topic with these settings.
async fn letter_without_payload(bytes: usize, settings: &[(&str, &str)]) {
    let stage = Stage::new(1).await;
    let dead = unique("dead");
    create_with(&stage.input.bootstrap, &dead, 1, settings).await;
    let dead = Topic::made(stage.input.bootstrap.clone(), dead, 1);
    stage.input.send(0, None, Some(&"x".repeat(bytes))).await;
    stage.input.send(0, None, Some("small")).await;
    let mut config = stage.config();
    config.dead_letters = Some(dead.name.clone());
    let to = stage.output.name.clone();
    let running = stage.start_with(config, move |message: Message| {
        let made = outgoing(&to, &message);
        let is_small = message.payload().len() < 100;
        async move { if is_small { Ok(vec![made]) } else { Err(HandlerError::permanent("too long")) } }
    });
    stage.input.wait_committed(&[2]).await;
    assert_eq!(stage.results(1).await, ["small"]);
    let mut reader = dead.open().await;
    let letter = take(&mut reader, 1).await.remove(0).message;
    assert!(letter.payload().is_empty());
    assert_eq!(letter.header("onceward-oversize-bytes").unwrap()[..], *bytes.to_string().as_bytes());
    assert!(letter.header("onceward-position").is_some());
    reader.close().await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_does_not_fit_goes_without_its_payload_and_the_rest_goes_on() {
    letter_without_payload(999_800, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_the_brokers_topic_does_not_take_goes_without_its_payload() {
    letter_without_payload(5_000, &[("max.message.bytes", "2000")]).await;
}

/// Topics that reject one record of a batch when they get it: the client cannot know it before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_the_broker_refuses_for_good_becomes_a_letter_and_the_rest_of_its_batch_goes_on() {
    let cases: [(&[(&str, &str)], &str); 2] = [
        // Together the others are larger than one message may be, too.
        (&[("max.message.bytes", "20000")], "too-large"),
        (&[("cleanup.policy", "compact")], "keyless"),
    ];
    for (settings, ill) in cases {
        let mut stage = Stage::new(1).await;
        let output = unique("strict");
        create_with(&stage.input.bootstrap, &output, 1, settings).await;
        stage.output = Topic::made(stage.input.bootstrap.clone(), output, 1);
        let dead = Topic::new(1).await;
        let large = ["x".repeat(1_000), "y".repeat(50_000)];
        for number in 0..40 {
            let payload = if number == 23 { ill.to_owned() } else { format!("{number:02}{}", large[0]) };
            stage.input.send(0, Some(&format!("{number}")), Some(&payload)).await;
        }
        let mut config = stage.config();
        config.dead_letters = Some(dead.name.clone());
        let (to, large) = (stage.output.name.clone(), large[1].clone());
        let running = stage.start_with(config, move |message: Message| {
            let mut made = outgoing(&to, &message);
            made.order_key = message.order_key().cloned();
            match payload(&message).as_str() {
                "too-large" => made.payload = large.clone().into(),
                "keyless" => made.order_key = None,
                _ => {}
            }
            async move { Ok(vec![made]) }
        });
        stage.input.wait_committed(&[40]).await;
        let results = stage.results(39).await;
        assert!(results.iter().all(|result| result.len() == 1_002), "{ill}: {results:?}");
        let summary = running.stop().await;
        assert_eq!((summary.records, summary.produced, summary.dead_lettered), (40, 39, 1), "{ill}");
        let mut reader = dead.open().await;
        let letter = take(&mut reader, 1).await.remove(0);
        assert_eq!(text(&letter), ill);
        assert_eq!(letter.message.header("onceward-reason").unwrap()[..], *b"permanent");
        assert!(letter.message.header("onceward-position").unwrap().ends_with(b":23"));
        reader.close().await.unwrap();
    }
}
