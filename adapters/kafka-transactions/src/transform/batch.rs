//! Transforms a batch: keys side by side, the records of a key one after the other, each until it succeeds or fails for good.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use futures_util::{FutureExt, TryStreamExt};
use onceward::store::Reason;
use onceward::{Error, ErrorKind, HandlerError, Message, Outgoing, Verdict};

use super::Transform;
use super::config::TransformConfig;
use crate::dead_letter::letter;

/// A record of a batch.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// The assignment it came in.
    pub(super) epoch: u64,
    pub(super) message: Message,
}

/// What is to be produced for a record.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) outgoing: Vec<Outgoing>,
    /// It failed for good: what is produced is its letter.
    pub(super) is_dead: bool,
}

/// Transforms each record; the results are in the order of the records.
///
/// # Errors
/// A record failed for good, and there is no topic for dead letters.
pub(super) async fn transform(
    config: &TransformConfig,
    transform: &impl Transform,
    taken: &[Taken],
) -> Result<Vec<Made>, Error> {
    let mut lanes = HashMap::<_, Vec<usize>>::new();
    for (index, own) in taken.iter().enumerate() {
        lanes.entry((&own.topic, own.partition, own.message.order_key())).or_default().push(index);
    }
    let lanes = lanes.into_values().map(|lane| async move {
        let mut made = Vec::with_capacity(lane.len());
        for index in lane {
            made.push((index, one(config, transform, &taken[index].message).await?));
        }
        Ok::<_, Error>(made)
    });
    let made: Vec<_> = stream::iter(lanes).buffer_unordered(config.concurrency).try_collect().await?;
    let mut made: Vec<_> = made.into_iter().flatten().collect();
    made.sort_unstable_by_key(|(index, _)| *index);
    Ok(made.into_iter().map(|(_, made)| made).collect())
}

async fn one(config: &TransformConfig, transform: &impl Transform, message: &Message) -> Result<Made, Error> {
    if let Some(defect) = message.defect() {
        return dead(config, message, Reason::Defect, &defect.to_string(), 0);
    }
    let (mut attempts, mut pause) = (0, Duration::ZERO);
    loop {
        attempts += 1;
        let limit = config.transform_timeout;
        // All of the user's code runs inside: the call as well as the future.
        let run = async { transform.transform(message.clone()).await };
        let error = match tokio::time::timeout(limit, AssertUnwindSafe(run).catch_unwind()).await {
            Ok(Ok(Ok(outgoing))) => return Ok(Made { outgoing, is_dead: false }),
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => HandlerError::retry("the transformation panicked"),
            Err(_) => HandlerError::retry(format!(
                "the transformation did not return within {limit:?} and was dropped"
            )),
        };
        let wait = match error.verdict() {
            // What is not the record's fault uses no attempt.
            Verdict::Unavailable => {
                attempts -= 1;
                Duration::ZERO
            }
            Verdict::Permanent => return dead(config, message, Reason::Permanent, error.text(), attempts),
            _ if attempts >= config.retry.max_attempts => {
                return dead(config, message, Reason::AttemptsExhausted, error.text(), attempts);
            }
            Verdict::RetryAfter(wait) => wait,
            _ => Duration::ZERO,
        };
        tracing::debug!(delivery = ?message, attempts, error = error.text(), "a transformation failed and is repeated");
        pause = config.retry.backoff.delay(attempts.max(1), pause, &mut fastrand::Rng::new());
        tokio::time::sleep(wait.max(pause)).await;
    }
}

/// The letter of a record that failed for good.
///
/// # Errors
/// There is no topic for it.
pub(super) fn dead(
    config: &TransformConfig,
    message: &Message,
    reason: Reason,
    error: &str,
    attempts: u32,
) -> Result<Made, Error> {
    let Some(to) = &config.dead_letters else {
        let what = format!(
            "a record failed for good ({reason}: {error}) and there is no topic for dead letters; mend the cause, or set \
             dead_letters"
        );
        return Err(Error::new(ErrorKind::Config, format!("transform {message:?}"), what));
    };
    Ok(Made { outgoing: vec![letter(to, message, reason, error, attempts)], is_dead: true })
}
