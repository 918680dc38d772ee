//! Finds out whether the cluster can be reached, and if not, why: [`reach`].

use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;

use crate::poll::rebalance::Users;

/// How long one question waits; the client's events are served in between.
const SLICE: Duration = Duration::from_millis(300);
const EVENTS: Duration = Duration::from_millis(20);
/// How long other brokers have to answer, when one does not let the client in.
const OTHERS: Duration = Duration::from_secs(2);

/// Waits up to `limit` until the cluster tells of `topic`, which need not be there, or until it is clear that nobody is let in. The
/// client asks for tokens meanwhile, if it needs some.
///
/// # Errors
/// The cluster does not answer. Why not is in the context's [`Trouble`](crate::client::diagnosis::Trouble).
pub(crate) fn reach<C: ClientContext>(
    asked: &BaseConsumer<Users<C>>,
    topic: &str,
    limit: Duration,
) -> KafkaResult<()> {
    let began = Instant::now();
    loop {
        let answer = asked.fetch_metadata(Some(topic), SLICE);
        // Its errors are events, which the context has seen.
        while asked.poll(EVENTS).is_some() && began.elapsed() < limit {}
        let is_hopeless = asked.context().trouble.is_noted() && began.elapsed() >= OTHERS;
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if is_hopeless || began.elapsed() >= limit => return Err(error),
            Err(_) => {}
        }
    }
}
