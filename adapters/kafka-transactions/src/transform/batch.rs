//! Transforms a batch: keys concurrently, the records of a key in order, each until it succeeds or fails permanently.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use futures_util::{FutureExt, TryStreamExt};
use onceward::store::Reason;
use onceward::{Error, ErrorKind, HandlerError, Message, Outgoing, Verdict};

use crate::dead_letter::create_letter;
use crate::transform::config::TransformConfig;
use crate::transform::function::Transform;

/// A consumed record.
#[derive(Clone, Debug)]
pub(super) struct BatchRecord {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// The epoch of the assignment in which it was consumed.
    pub(super) epoch: u64,
    pub(super) message: Message,
}

/// The records to be produced for a consumed record.
#[derive(Debug)]
pub(super) struct Produced {
    pub(super) outgoing: Vec<Outgoing>,
    /// The record failed permanently: its dead letter is produced.
    pub(super) is_dead: bool,
}

/// Transforms the records of a batch; the results are in their order.
///
/// # Errors
/// A record failed permanently, and no dead-letter topic is configured.
pub(super) async fn transform_batch(
    config: &TransformConfig,
    transform: &impl Transform,
    batch: &[BatchRecord],
) -> Result<Vec<Produced>, Error> {
    let mut lanes = HashMap::<_, Vec<usize>>::new();
    for (index, own) in batch.iter().enumerate() {
        lanes.entry((&own.topic, own.partition, own.message.order_key())).or_default().push(index);
    }
    let lanes = lanes.into_values().map(|lane| async move {
        let mut produced = Vec::with_capacity(lane.len());
        for index in lane {
            produced.push((index, transform_record(config, transform, &batch[index].message).await?));
        }
        Ok::<_, Error>(produced)
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
        let error = match tokio::time::timeout(limit, AssertUnwindSafe(run).catch_unwind()).await {
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
