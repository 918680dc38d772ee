//! The two batches of a transform: while one is committed the next one is transformed, and does not overtake it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::Message;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};
use tokio::sync::Semaphore;

use crate::support::{Topic, create_with, unique, until};
use crate::transform_stage::{Running, Stage, on_mock, outgoing, payload, sorted, until_all_ran};

/// Longer than the tests take, so that batches are full.
const LINGER: Duration = Duration::from_secs(10);

/// Which records ran, in order.
type Order = Arc<Mutex<Vec<String>>>;

/// A transform that copies, and notes which records it ran in which order.
fn start_noting(stage: &Stage, config: onceward_kafka_transactions::TransformConfig) -> (Running, Order) {
    let order = Order::default();
    let (to, runs, noted) = (stage.output.name.clone(), Arc::clone(&stage.runs), Arc::clone(&order));
    let running = stage.start_with(config, move |message: Message| {
        *runs.lock().unwrap().entry(payload(&message)).or_default() += 1;
        noted.lock().unwrap().push(payload(&message));
        let made = outgoing(&to, &message);
        async move { Ok(vec![made]) }
    });
    (running, order)
}

/// What ran before any record ran again.
fn first_runs(order: &Order) -> BTreeSet<String> {
    let mut first = BTreeSet::new();
    for own in &*order.lock().unwrap() {
        if !first.insert(own.clone()) {
            break;
        }
    }
    first
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("0:{number}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_batch_is_transformed_during_a_commit_no_second_one_and_it_is_dropped_if_the_outcome_is_unknown()
{
    let (cluster, stage, mut config) = on_mock(15).await;
    (config.batch_records, config.linger, config.commit_timeout) = (5, LINGER, Duration::from_secs(3));
    // Refused for longer than it is asked.
    cluster.request_errors(Api::EndTxn, &[Answer::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS; 1000]);
    let (running, order) = start_noting(&stage, config);
    until_all_ran(&stage, 5, 2).await;
    cluster.clear_request_errors(Api::EndTxn);
    until_all_ran(&stage, 10, 2).await;
    until_all_ran(&stage, 15, 1).await;
    let summary = running.stop().await;
    assert_eq!(first_runs(&order), numbers(0..10).into_iter().collect(), "two batches");
    assert!(summary.unknown >= 1 && summary.aborted == 0, "{summary:?}");
    assert_eq!(summary.records, 15, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_was_transformed_during_an_aborted_transaction_is_committed_after_the_aborted_one() {
    let (cluster, stage, mut config) = on_mock(10).await;
    (config.batch_records, config.linger, config.commit_timeout) = (5, LINGER, Duration::from_secs(20));
    cluster.request_errors(Api::TxnOffsetCommit, &[Answer::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION]);
    // A transaction is four requests and more, the next batch is there already.
    cluster.broker_round_trip_time(1, Duration::from_millis(250)).unwrap();
    let (running, order) = start_noting(&stage, config);
    until_all_ran(&stage, 10, 2).await;
    let summary = running.stop().await;
    assert_eq!((summary.aborted, summary.unknown, summary.records), (1, 0, 10), "{summary:?}");
    assert_eq!(summary.transactions, 2, "{summary:?}");
    assert_eq!(*order.lock().unwrap(), [numbers(0..10), numbers(0..10)].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_behind_one_that_is_split_and_sent_again_stay_behind_it() {
    let mut stage = Stage::new(1).await;
    let output = unique("strict");
    create_with(&stage.input.bootstrap, &output, 1, &[("max.message.bytes", "20000")]).await;
    stage.output = Topic::made(stage.input.bootstrap.clone(), output, 1);
    let dead = Topic::new(1).await;
    stage.input.fill(60).await;
    let mut config = stage.config();
    (config.batch_records, config.linger) = (10, LINGER);
    config.dead_letters = Some(dead.name.clone());
    let to = stage.output.name.clone();
    let running = stage.start_with(config, move |message: Message| {
        let mut made = outgoing(&to, &message);
        let own = payload(&message);
        // Of the first batch, this one is rejected for good; the second one is too large for one message of the topic.
        let bytes = match own.as_str() {
            "0:3" => 50_000,
            own if numbers(10..20).iter().any(|of_second| of_second == own) => 3_000,
            _ => 0,
        };
        made.payload = format!("{own}{}", " ".repeat(bytes)).into();
        async move { Ok(vec![made]) }
    });
    stage.input.wait_committed(&[60]).await;
    let results = stage.results_in_order(59).await;
    let results: Vec<_> = results.iter().map(|own| own.trim_end().to_owned()).collect();
    assert_eq!(results, [numbers(0..3), numbers(4..60)].concat());
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.produced, summary.dead_lettered), (60, 59, 1), "{summary:?}");
    assert!(summary.aborted >= 2, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_transformed_while_its_partition_moves_has_one_result() {
    let stage = Stage::new(2).await;
    stage.input.fill(6).await;
    let mut config = stage.config();
    (config.batch_records, config.linger) = (12, LINGER);
    let (release, to) = (Arc::new(Semaphore::new(0)), stage.output.name.clone());
    let (runs, held) = (Arc::clone(&stage.runs), Arc::clone(&release));
    let first = stage.start_with(config, move |message: Message| {
        *runs.lock().unwrap().entry(payload(&message)).or_default() += 1;
        let (made, held) = (outgoing(&to, &message), Arc::clone(&held));
        async move {
            drop(held.acquire().await.unwrap());
            Ok(vec![made])
        }
    });
    until("the first one has all records", || stage.runs.lock().unwrap().len() == 12).await;
    let mut config = stage.config();
    config.transactional_id.push_str("-second");
    let second = stage.start(config);
    until("the second one has transformed a partition", || {
        let runs = stage.runs.lock().unwrap();
        (0..2).any(|partition| runs.get(&format!("{partition}:5")).is_some_and(|own| *own >= 2))
    })
    .await;
    release.add_permits(1);
    stage.input.wait_committed(&[6, 6]).await;
    assert_eq!(stage.results(12).await, sorted(2, 6));
    let (first, second) = (first.stop().await, second.stop().await);
    assert_eq!((first.records, second.records), (6, 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_leaves_what_hangs_uncommitted_and_finishes_what_was_transformed_before() {
    let stage = Stage::new(1).await;
    stage.input.fill(10).await;
    let mut config = stage.config();
    (config.batch_records, config.linger) = (5, LINGER);
    let (to, runs) = (stage.output.name.clone(), Arc::clone(&stage.runs));
    let hanging = stage.start_with(config, move |message: Message| {
        *runs.lock().unwrap().entry(payload(&message)).or_default() += 1;
        let (made, hangs) = (outgoing(&to, &message), payload(&message) == "0:7");
        async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok(vec![made])
        }
    });
    until("the second batch runs", || stage.runs.lock().unwrap().len() == 10).await;
    let summary = hanging.stop().await;
    assert_eq!((summary.records, stage.input.committed().await), (5, vec![5]));
    let running = stage.start(stage.config());
    stage.input.wait_committed(&[10]).await;
    assert_eq!(stage.results_in_order(10).await, numbers(0..10));
    assert_eq!(running.stop().await.records, 5);
}
