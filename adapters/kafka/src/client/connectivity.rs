//! Checks whether the cluster is reachable: [`wait_for_cluster`].

use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;

use crate::client::context::SharedContext;

/// The timeout of one metadata request; the client's events are served in between.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(300);
const EVENT_TIMEOUT: Duration = Duration::from_millis(20);
/// How long other brokers may take to answer after one has rejected the client.
const OTHER_BROKERS: Duration = Duration::from_secs(2);

/// Waits up to `limit` for metadata of `topic`, which need not exist, or until authentication has clearly failed. The client
/// requests tokens meanwhile, if it needs some. Blocks.
///
/// # Errors
/// The cluster did not answer. The cause is in the context's
/// [`ConnectionDiagnosis`](crate::client::diagnosis::ConnectionDiagnosis).
pub(crate) fn wait_for_cluster<C: ClientContext>(
    client: &BaseConsumer<SharedContext<C>>,
    topic: &str,
    limit: Duration,
) -> KafkaResult<()> {
    let began = Instant::now();
    loop {
        let answer = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT);
        // Errors of the client are events, which its context has recorded.
        while client.poll(EVENT_TIMEOUT).is_some() && began.elapsed() < limit {}
        let is_rejected = client.context().diagnosis.has_cause() && began.elapsed() >= OTHER_BROKERS;
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if is_rejected || began.elapsed() >= limit => return Err(error),
            Err(_) => {}
        }
    }
}
