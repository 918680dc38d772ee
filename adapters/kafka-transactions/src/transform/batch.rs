//! Transforms a batch: keys concurrently, the records of a key in order, each until it succeeds or fails permanently.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use futures_util::{FutureExt, TryStreamExt, poll};
use onceward::store::Reason;
use onceward::{Error, ErrorKind, HandlerError, Message, Outgoing, Verdict};

use crate::dead_letter::create_letter;
use crate::ready_first;
use crate::transform::assignment::PartitionAssignment;
use crate::transform::config::TransformConfig;
use crate::transform::function::Transform;

/// A consumed record.
#[derive(Debug)]
pub(super) struct BatchRecord {
    /// The partition, as it was assigned when the record was consumed.
    pub(super) from: Arc<PartitionAssignment>,
    pub(super) offset: i64,
    pub(super) message: Message,
}

/// The records to be produced for a consumed record.
#[derive(Debug)]
pub(super) struct Produced {
    pub(super) outgoing: Vec<Outgoing>,
    /// The record failed permanently: its dead letter is produced.
    pub(super) is_dead: bool,
}

/// Records, and what is produced for each of them.
#[derive(Debug, Default)]
pub(super) struct TransformedBatch {
    pub(super) records: Vec<BatchRecord>,
    pub(super) produced: Vec<Produced>,
}

impl TransformedBatch {
    /// Adds what was consumed after it.
    pub(super) fn append(&mut self, mut part: Self) {
        self.records.append(&mut part.records);
        self.produced.append(&mut part.produced);
    }

    /// Drops the records of partitions that were revoked or rewound since they were consumed.
    pub(super) fn drop_outdated(&mut self) {
        let Self { records, produced } = self;
        if records.iter().all(|own| own.from.is_current()) {
            return;
        }
        let kept = std::mem::take(records).into_iter().zip(std::mem::take(produced));
        (*records, *produced) = kept.filter(|(own, _)| own.from.is_current()).unzip();
    }
}

/// Transforms records; the results are in their order.
///
/// Most transformations have their result when they are first polled: as long as they do, the records run one after another, without
/// a task or a timer for each. From the first one that waits on, keys run concurrently.
///
/// # Errors
/// A record failed permanently, and no dead-letter topic is configured.
pub(super) async fn transform_records(
    config: &TransformConfig,
    transform: &impl Transform,
    records: &[BatchRecord],
) -> Result<Vec<Produced>, Error> {
    let mut produced = Vec::with_capacity(records.len());
    for (index, own) in records.iter().enumerate() {
        let mut first = pin!(transform_record(config, transform, &own.message));
        match poll!(first.as_mut()) {
            Poll::Ready(own) => produced.push(own?),
            Poll::Pending => {
                produced.extend(transform_lanes(config, transform, &records[index..], first).await?);
                break;
            }
        }
        tokio::task::consume_budget().await;
    }
    Ok(produced)
}

/// Transforms records, keys concurrently. The first one is running already.
async fn transform_lanes(
    config: &TransformConfig,
    transform: &impl Transform,
    records: &[BatchRecord],
    first: impl Future<Output = Result<Produced, Error>>,
) -> Result<Vec<Produced>, Error> {
    // In the order of their first records.
    let (mut numbers, mut lanes) = (HashMap::new(), Vec::<Vec<usize>>::new());
    for (index, own) in records.iter().enumerate() {
        let lane = (&own.from.topic, own.from.partition, own.message.order_key());
        let number = *numbers.entry(lane).or_insert(lanes.len());
        if number == lanes.len() {
            lanes.push(Vec::new());
        }
        lanes[number].push(index);
    }
    let mut first = Some(first);
    let lanes = lanes.into_iter().map(|lane| {
        let first = first.take();
        async move {
            let mut produced = Vec::with_capacity(lane.len());
            if let Some(first) = first {
                produced.push((lane[0], first.await?));
            }
            for index in lane.into_iter().skip(produced.len()) {
                produced.push((index, transform_record(config, transform, &records[index].message).await?));
            }
            Ok::<_, Error>(produced)
        }
    });
    let produced: Vec<_> = stream::iter(lanes).buffer_unordered(config.concurrency).try_collect().await?;
    let mut produced: Vec<_> = produced.into_iter().flatten().collect();
    produced.sort_unstable_by_key(|(index, _)| *index);
    Ok(produced.into_iter().map(|(_, own)| own).collect())
}

async fn transform_record(
    config: &TransformConfig,
    transform: &impl Transform,
    message: &Message,
) -> Result<Produced, Error> {
    if let Some(defect) = message.defect() {
        return dead_letter(config, message, Reason::Defect, &defect.to_string(), 0);
    }
    let (mut attempts, mut pause) = (0, Duration::ZERO);
    loop {
        attempts += 1;
        let limit = config.transform_timeout;
        // All of the user's code runs inside: the call as well as the future.
        let run = async { transform.transform(message.clone()).await };
        let error = match ready_first::timeout(limit, AssertUnwindSafe(run).catch_unwind()).await {
            Ok(Ok(Ok(outgoing))) => return Ok(Produced { outgoing, is_dead: false }),
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => HandlerError::retry("the transformation panicked"),
            Err(_) => HandlerError::retry(format!(
                "the transformation did not return within {limit:?} and was dropped"
            )),
        };
        let wait = match error.verdict() {
            // An unavailable dependency is not the record's fault.
            Verdict::Unavailable => {
                attempts -= 1;
                Duration::ZERO
            }
            Verdict::Permanent => {
                return dead_letter(config, message, Reason::Permanent, error.text(), attempts);
            }
            _ if attempts >= config.retry.max_attempts => {
                return dead_letter(config, message, Reason::AttemptsExhausted, error.text(), attempts);
            }
            Verdict::RetryAfter(wait) => wait,
            _ => Duration::ZERO,
        };
        tracing::debug!(delivery = ?message, attempts, error = error.text(), "transformation failed; retrying");
        pause = config.retry.backoff.delay(attempts.max(1), pause, &mut fastrand::Rng::new());
        tokio::time::sleep(wait.max(pause)).await;
    }
}

/// Creates the dead letter of a record that failed permanently.
///
/// # Errors
/// No dead-letter topic is configured.
pub(super) fn dead_letter(
    config: &TransformConfig,
    message: &Message,
    reason: Reason,
    error: &str,
    attempts: u32,
) -> Result<Produced, Error> {
    let Some(to) = &config.dead_letters else {
        let what = format!(
            "a record failed permanently ({reason}: {error}), and no dead-letter topic is configured; remove the cause, or set \
             dead_letters"
        );
        return Err(Error::new(ErrorKind::Config, format!("transform {message:?}"), what));
    };
    Ok(Produced { outgoing: vec![create_letter(to, message, reason, error, attempts)], is_dead: true })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use onceward_kafka::KafkaConfig;
    use onceward_kafka::internal::LogId;

    use super::*;

    fn partition() -> Arc<PartitionAssignment> {
        Arc::new(PartitionAssignment::new("in".into(), 0, LogId::default(), "in".into()))
    }

    fn records(from: &Arc<PartitionAssignment>, keys: &[&'static str]) -> Vec<BatchRecord> {
        let record = |(number, key): (usize, &&'static str)| BatchRecord {
            from: Arc::clone(from),
            offset: i64::try_from(number).unwrap(),
            message: Message::builder(format!("{key}{number}")).order_key(*key).build(),
        };
        keys.iter().enumerate().map(record).collect()
    }

    fn text(message: &Message) -> String {
        String::from_utf8_lossy(message.payload()).into_owned()
    }

    /// Transforms records of these keys; those of the keys in `slow` take a second. What ended in which order, and the results.
    async fn run(keys: &[&'static str], slow: &'static str) -> (Vec<String>, Vec<String>, Duration) {
        let config = TransformConfig::new(KafkaConfig::new(["h:1"], ["in"], "group"), "id");
        let ended = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&ended);
        let transform = move |message: Message| {
            let noted = Arc::clone(&noted);
            async move {
                if slow.as_bytes().contains(&message.payload()[0]) {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                noted.lock().unwrap().push(text(&message));
                Ok(vec![Outgoing { payload: message.payload().clone(), ..Outgoing::default() }])
            }
        };
        let began = tokio::time::Instant::now();
        let produced = transform_records(&config, &transform, &records(&partition(), keys)).await.unwrap();
        let results = produced
            .iter()
            .map(|own| String::from_utf8_lossy(&own.outgoing[0].payload).into_owned())
            .collect();
        let ended = std::mem::take(&mut *ended.lock().unwrap());
        (ended, results, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn results_have_the_order_of_the_records_and_keys_run_concurrently_from_the_first_that_waits_on() {
        let keys = ["a", "b", "s", "a", "s", "t", "b"];
        let expected = ["a0", "b1", "s2", "a3", "s4", "t5", "b6"];
        let (ended, results, took) = run(&keys, "").await;
        assert_eq!(
            (&ended[..], &results[..]),
            (&expected.map(String::from)[..], &expected.map(String::from)[..])
        );
        assert_eq!(took, Duration::ZERO);
        let (ended, results, took) = run(&keys, "st").await;
        assert_eq!(results, expected);
        // Two of one key one after another, the third beside the first.
        assert_eq!(took, Duration::from_secs(2));
        assert_eq!(ended[..4], ["a0", "b1", "a3", "b6"]);
        assert_eq!(ended[6], "s4");
    }

    #[tokio::test(start_paused = true)]
    async fn a_transformation_that_waits_on_has_its_timeout_and_is_dropped_then() {
        let mut config = TransformConfig::new(KafkaConfig::new(["h:1"], ["in"], "group"), "id");
        config.dead_letters = Some("dead".to_owned());
        config.retry.max_attempts = 2;
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        let transform = move |_: Message| {
            let held = Arc::clone(&held);
            // One of the attempt before would be alive still.
            let before = Arc::strong_count(&held);
            async move {
                assert_eq!(before, 3, "the attempt before was not dropped");
                std::future::pending::<()>().await;
                drop(held);
                Ok(Vec::new())
            }
        };
        let began = tokio::time::Instant::now();
        let produced = transform_records(&config, &transform, &records(&partition(), &["a"])).await.unwrap();
        assert!(produced[0].is_dead);
        assert!(began.elapsed() >= config.transform_timeout * 2, "{:?}", began.elapsed());
        let reason = produced[0].outgoing[0].headers.iter().find(|(name, _)| name == "onceward-error");
        let reason = String::from_utf8_lossy(&reason.unwrap().1).into_owned();
        assert!(reason.contains("did not return"), "{reason}");
    }

    #[test]
    fn records_of_an_ended_assignment_are_dropped_with_their_results() {
        let [kept, other] = [partition(), partition()];
        let mut batch = TransformedBatch { records: Vec::new(), produced: Vec::new() };
        for (number, from) in [&kept, &other, &kept, &other].into_iter().enumerate() {
            let mut own = records(from, &["a"]).remove(0);
            own.offset = i64::try_from(number).unwrap();
            batch.records.push(own);
            let id = number.to_string();
            batch
                .produced
                .push(Produced { outgoing: vec![Outgoing { id, ..Outgoing::default() }], is_dead: false });
        }
        batch.drop_outdated();
        assert_eq!(batch.records.len(), 4);
        other.end();
        batch.drop_outdated();
        let left: Vec<_> = batch.records.iter().map(|own| own.offset).collect();
        let ids: Vec<_> = batch.produced.iter().map(|own| own.outgoing[0].id.clone()).collect();
        assert_eq!((left, ids), (vec![0, 2], vec!["0".to_owned(), "2".to_owned()]));
    }
}
