//! Monitors topics, logs and brokers from a thread and a client of its own: [`spawn_monitor`].
//!
//! It detects recreated topics and truncated logs, measures the lag, and reports whether the cluster is reachable.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::ErrorKind;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

use crate::client::context::SharedContext;
use crate::client::native::{self, LogEdge};
use crate::handle::Handle;
use crate::log_change::LogObservation;
use crate::state::log_check::CheckedPartition;

/// The interval between checks of topic ids. If a topic is recreated and its new log is at once longer than the old one, records
/// are attributed to the old log for this long.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The interval between checks of doubtful partitions.
const DOUBT_INTERVAL: Duration = Duration::from_millis(200);
/// The interval between measurements of the lag.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// The timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a log must be reported to be shorter than before until it is trusted: a broker that has lost the leadership, and does
/// not know it yet, may lag behind the others.
const SHORT_LOG_CONFIRMATION: Duration = Duration::from_secs(1);

/// Starts the thread. It ends when the consumer stops.
///
/// # Errors
/// No thread is available.
pub(crate) fn spawn_monitor<C: ClientContext + 'static>(
    client: ClientConfig,
    context: SharedContext<C>,
    handle: Arc<Handle>,
) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("onceward-kafka-monitor".into());
    thread.spawn(move || run(&client, &context, &handle)).map(drop)
}

fn run<C: ClientContext + 'static>(config: &ClientConfig, context: &SharedContext<C>, handle: &Handle) {
    let mut connected: Option<BaseConsumer<SharedContext<C>>> = None;
    let mut measured = None::<Instant>;
    let mut suspects = ShortLogs::default();
    let mut password_refresh = context.password_refresh();
    while handle.wait_for_log_check(DOUBT_INTERVAL, CHECK_INTERVAL) {
        let client = match &connected {
            Some(client) => client,
            None => match config.create_with_context(context.clone()) {
                Ok(client) => connected.insert(client),
                Err(error) => {
                    tracing::error!(%error, "creating the monitoring client failed; topics are not monitored");
                    return;
                }
            },
        };
        password_refresh.run_if_due(client.client());
        // Errors of the client are events, which its context has recorded; token requests are served here as well.
        while client.poll(Duration::ZERO).is_some() {}
        let measures_lag = measured.is_none_or(|at| at.elapsed() >= LAG_INTERVAL);
        match check_logs(client, handle, measures_lag, &mut suspects) {
            Ok(missing) => {
                if measures_lag {
                    measured = Some(Instant::now());
                }
                report_health(handle, &missing);
            }
            Err(error) => {
                let operation = "monitor the topics".to_owned();
                let error = context.diagnosis.explain(operation, error, ErrorKind::Denied);
                if !handle.is_stopping() && handle.health.set_down(error.to_string()) {
                    tracing::warn!(%error, "source is down; the client reconnects");
                }
            }
        }
    }
}

/// Reports the health of a source whose cluster has answered.
fn report_health(handle: &Handle, missing: &[String]) {
    let trouble = handle.with(|state| state.join_failure.clone().or_else(|| state.pending.trouble()));
    let trouble = trouble.or_else(|| {
        let names = missing.join(", ");
        let fix = "create it, or remove it from the configuration";
        (!missing.is_empty()).then(|| format!("topic {names} does not exist; {fix}"))
    });
    match trouble {
        Some(reason) => {
            if handle.health.set_down(reason.clone()) {
                tracing::error!(reason, "source is down, at least in part; existing topics are consumed");
            }
        }
        None => {
            if handle.health.set_up() && handle.health.reconnects() > 0 {
                tracing::info!("source is up again");
            }
        }
    }
}

/// Checks the logs of the assigned partitions once. Returns the topics that do not exist.
fn check_logs<C: ClientContext>(
    client: &BaseConsumer<SharedContext<C>>,
    handle: &Handle,
    measures_lag: bool,
    suspects: &mut ShortLogs,
) -> KafkaResult<Vec<String>> {
    let names = handle.topics.consumed();
    let (mut ids, mut missing) = (HashMap::new(), Vec::new());
    let described = native::try_describe_topics(client.client(), &names, REQUEST_TIMEOUT)?;
    for (name, described) in names.iter().zip(described) {
        match described {
            Ok(topic) => drop(ids.insert((*name).to_owned(), topic.id)),
            Err(error) if is_missing(&error) => missing.push((*name).to_owned()),
            Err(error) => return Err(error),
        }
    }
    let now = Instant::now();
    let partitions = handle.with(|state| {
        // A broker may not know yet that a topic was deleted.
        ids.retain(|_, id: &mut Option<String>| id.as_ref().is_none_or(|id| !state.is_deleted(id, now)));
        state.checked_partitions()
    });
    handle.health.set_assigned(partitions.len());
    suspects.retain(|epoch| partitions.contains_key(epoch));
    let is_replaced = |own: &CheckedPartition| {
        let is_recreated = match (ids.get(&*own.topic), &own.topic_id) {
            (Some(Some(now)), Some(before)) => now != before,
            _ => false,
        };
        own.doubtful || is_recreated
    };
    let is_due = |own: &CheckedPartition| measures_lag || own.suspect || is_replaced(own);
    let due = partitions.values().filter(|own| ids.contains_key(&*own.topic) && is_due(own));
    let due: Vec<_> = due.map(|own| (Arc::clone(&own.topic), own.partition)).collect();
    if due.is_empty() {
        if measures_lag {
            handle.health.set_lag(Some(0));
        }
        return Ok(missing);
    }
    let starts = native::log_edges(client.client(), &due, LogEdge::Low, REQUEST_TIMEOUT)?;
    let ends = native::log_edges(client.client(), &due, LogEdge::High, REQUEST_TIMEOUT)?;
    if ends.is_empty() {
        return Err(KafkaError::MetadataFetch(Code::LeaderNotAvailable));
    }
    let mut lag = 0;
    for (epoch, own) in partitions {
        let key = (Arc::clone(&own.topic), own.partition);
        let (Some(log_start), Some(end)) = (starts.get(&key).copied(), ends.get(&key).copied()) else {
            continue;
        };
        // A log that ends before delivered records is another log, if the report is right.
        let is_short = own.next.is_some_and(|next| next > end);
        let is_confirmed = suspects.record(epoch, is_short, Instant::now());
        handle.with(|state| state.set_suspect(epoch, is_short));
        if is_replaced(&own) || is_confirmed {
            let topic_id = ids.get(&*own.topic).cloned().flatten();
            let log_end = end.max(log_start);
            handle.with(|state| state.observe(LogObservation { epoch, topic_id, log_start, log_end }));
        }
        lag += end.saturating_sub(own.next.unwrap_or(log_start).max(log_start));
    }
    if measures_lag {
        handle.health.set_lag(Some(lag));
    }
    Ok(missing)
}

fn is_missing(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(Code::UnknownTopicOrPartition | Code::UnknownTopic))
}

/// The partitions whose logs are reported to end before delivered records, by epoch, and since when.
#[derive(Debug, Default)]
struct ShortLogs(HashMap<u64, Instant>);

impl ShortLogs {
    fn retain(&mut self, is_assigned: impl Fn(&u64) -> bool) {
        self.0.retain(|epoch, _| is_assigned(epoch));
    }

    /// Records a report. Returns true if the log was reported as too short for long enough, without a report to the contrary.
    fn record(&mut self, epoch: u64, is_short: bool, now: Instant) -> bool {
        if !is_short {
            self.0.remove(&epoch);
            return false;
        }
        now.saturating_duration_since(*self.0.entry(epoch).or_insert(now)) >= SHORT_LOG_CONFIRMATION
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_log_is_confirmed_by_consistent_reports_for_a_second() {
        let (mut suspects, began) = (ShortLogs::default(), Instant::now());
        let mut at = |ms, is_short| suspects.record(7, is_short, began + Duration::from_millis(ms));
        assert_eq!([at(0, true), at(900, true), at(950, false)], [false; 3]);
        assert_eq!([at(1_100, true), at(2_000, true), at(2_100, true)], [false, false, true]);
    }
}
