//! Memory of messages and exchanges for which the broker closed a channel: [`RefusalMemory`].

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::ErrorKind as Lapin;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::ShortString;
use onceward::{Error, ErrorKind};
use tokio::time::Instant;

use crate::publish::confirms::{OPERATION, publish_error, read_own_id};
use crate::publish::publishing::Publishing;

/// How long a refused exchange is not tried again.
const REFUSAL_TTL: Duration = Duration::from_secs(1);
/// How long a learned size limit is used: it may be raised meanwhile.
const SIZE_LIMIT_TTL: Duration = Duration::from_secs(60);
/// The capacity of each set; beyond it everything is learned again.
const CAPACITY: usize = 10_000;

/// Remembers which messages and exchanges made the broker close a channel.
#[derive(Default)]
pub(crate) struct RefusalMemory(Mutex<RefusalState>);

#[derive(Default)]
struct RefusalState {
    /// Exchanges that confirmed a message. The default exchange always exists.
    confirmed: HashSet<ShortString>,
    refused: HashMap<ShortString, (Instant, Error)>,
    suspects: HashSet<u64>,
    size_limit: Option<(usize, Instant)>,
}

impl RefusalMemory {
    fn lock(&self) -> MutexGuard<'_, RefusalState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if messages for this exchange may be published together.
    pub(crate) fn is_confirmed_exchange(&self, exchange: &ShortString) -> bool {
        let known = self.lock();
        (exchange.as_str().is_empty() || known.confirmed.contains(exchange))
            && !known.refused.contains_key(exchange)
    }

    /// True if a channel was closed while this message was in flight.
    pub(crate) fn is_suspect(&self, publishing: &Publishing) -> bool {
        let known = self.lock();
        !known.suspects.is_empty() && known.suspects.contains(&hash_message(publishing))
    }

    pub(crate) fn add_suspect(&self, publishing: &Publishing) {
        let mut known = self.lock();
        if known.suspects.len() >= CAPACITY {
            known.suspects.clear();
        }
        known.suspects.insert(hash_message(publishing));
    }

    /// Records that the broker confirmed a message that was published alone.
    pub(crate) fn mark_confirmed(&self, publishing: &Publishing) {
        let mut known = self.lock();
        known.suspects.remove(&hash_message(publishing));
        known.refused.remove(&publishing.exchange);
        if known.confirmed.len() >= CAPACITY {
            known.confirmed.clear();
        }
        known.confirmed.insert(publishing.exchange.clone());
    }

    /// The error of an exchange that is currently not tried.
    pub(crate) fn refusal(&self, exchange: &ShortString) -> Option<Error> {
        let known = self.lock();
        let (at, error) = known.refused.get(exchange)?;
        (at.elapsed() < REFUSAL_TTL).then(|| error.clone())
    }

    /// The error of a message that exceeds the broker's size limit.
    pub(crate) fn too_large(&self, publishing: &Publishing) -> Option<Error> {
        let (size_limit, at) = self.lock().size_limit?;
        (publishing.payload.len() > size_limit && at.elapsed() < SIZE_LIMIT_TTL).then(|| {
            let what = format!(
                "it has {} bytes and the broker's max_message_size is {size_limit}; raise that limit, or publish a smaller message",
                publishing.payload.len()
            );
            Error::new(ErrorKind::TooLarge, OPERATION, what)
        })
    }

    /// Learns from the error with which a channel was closed; returns the exchange that was refused as a whole.
    pub(crate) fn learn(&self, error: &lapin::Error) -> Option<ShortString> {
        let Lapin::ProtocolError(protocol) = error.kind() else { return None };
        let text = protocol.get_message().as_str();
        let mut known = self.lock();
        if let Some(size_limit) = parse_size_limit(text) {
            known.size_limit = Some((size_limit, Instant::now()));
        }
        let is_missing = *protocol.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND);
        let is_denied = *protocol.kind() == AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED);
        // Topic rights belong to a routing key, not to the exchange.
        if !is_missing && (!is_denied || text.contains("topic '")) {
            return None;
        }
        let name = text.split_once("exchange '")?.1.split_once('\'')?.0;
        let exchange = ShortString::try_new(if name == "amq.default" { "" } else { name }).ok()?;
        if known.refused.len() >= CAPACITY {
            known.refused.clear();
        }
        known.confirmed.remove(&exchange);
        known.refused.insert(exchange.clone(), (Instant::now(), publish_error(error.clone())));
        Some(exchange)
    }
}

/// The limit in "message size 5000 is larger than configured max size 1000".
fn parse_size_limit(text: &str) -> Option<usize> {
    let limit = text.split_once("larger than configured max size ")?.1;
    limit.split(|publishing: char| !publishing.is_ascii_digit()).next()?.parse().ok()
}

fn hash_message(publishing: &Publishing) -> u64 {
    let mut hasher = DefaultHasher::new();
    (publishing.exchange.as_str(), publishing.routing_key.as_str(), publishing.payload.len())
        .hash(&mut hasher);
    publishing.properties.message_id().as_ref().map(ShortString::as_str).hash(&mut hasher);
    read_own_id(&publishing.properties).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn closed(kind: AMQPSoftError, text: &str) -> lapin::Error {
        Lapin::ProtocolError(AMQPError::new(kind.into(), text.into())).into()
    }

    #[test]
    fn what_the_broker_says_tells_which_exchange_it_refuses() {
        let suspects = RefusalMemory::default();
        let (missing, denied) = (AMQPSoftError::NOTFOUND, AMQPSoftError::ACCESSREFUSED);
        for (kind, text, exchange) in [
            (&missing, "NOT_FOUND - no exchange 'shop' in vhost '/'", Some("shop")),
            (&denied, "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused", Some("")),
            (&denied, "ACCESS_REFUSED - cannot publish to internal exchange 'i' in vhost '/'", Some("i")),
            (&denied, "ACCESS_REFUSED - access to topic 'a.b' in exchange 'x' in vhost '/' refused", None),
            (&AMQPSoftError::PRECONDITIONFAILED, "PRECONDITION_FAILED - fault in exchange 'y'", None),
        ] {
            let learned = suspects.learn(&closed(kind.clone(), text));
            assert_eq!(learned, exchange.map(ShortString::from), "{text}");
            if let Some(exchange) = learned {
                assert!(suspects.refusal(&exchange).is_some() && !suspects.is_confirmed_exchange(&exchange));
            }
        }
    }

    #[test]
    fn the_brokers_limit_is_learned() {
        let text = "PRECONDITION_FAILED - message size 5000 is larger than configured max size 1000";
        assert_eq!(parse_size_limit(text), Some(1000));
        assert_eq!(parse_size_limit("PRECONDITION_FAILED - anything else"), None);
    }
}
