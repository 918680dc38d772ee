//! What is known of messages for which the broker closes the channel: [`Suspects`].

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::ErrorKind as Lapin;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::ShortString;
use onceward::{Error, ErrorKind};
use tokio::time::Instant;

use crate::confirm::{OPERATION, cut, own_id};
use crate::outgoing::Letter;

/// How long an exchange that the broker refused is not tried again.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// How long a limit of the broker's is believed: it may be raised while we run.
const LIMIT_FOR: Duration = Duration::from_secs(60);
/// Bounds the memory; beyond it all is learned again.
const MOST: usize = 10_000;

/// Remembers which messages and exchanges made the broker close a channel.
#[derive(Default)]
pub(crate) struct Suspects(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Exchanges that confirmed a message. The default exchange is always there.
    proven: HashSet<ShortString>,
    refused: HashMap<ShortString, (Instant, Error)>,
    letters: HashSet<u64>,
    largest: Option<(usize, Instant)>,
}

impl Suspects {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if messages for this exchange may go together.
    pub(crate) fn is_proven(&self, exchange: &ShortString) -> bool {
        let known = self.lock();
        (exchange.as_str().is_empty() || known.proven.contains(exchange))
            && !known.refused.contains_key(exchange)
    }

    /// True if the channel was closed when this letter was under way.
    pub(crate) fn contains(&self, letter: &Letter) -> bool {
        let known = self.lock();
        !known.letters.is_empty() && known.letters.contains(&hash(letter))
    }

    pub(crate) fn add(&self, letter: &Letter) {
        let mut known = self.lock();
        if known.letters.len() >= MOST {
            known.letters.clear();
        }
        known.letters.insert(hash(letter));
    }

    /// The broker confirmed a letter that was sent alone.
    pub(crate) fn proved(&self, letter: &Letter) {
        let mut known = self.lock();
        known.letters.remove(&hash(letter));
        known.refused.remove(&letter.exchange);
        if known.proven.len() >= MOST {
            known.proven.clear();
        }
        known.proven.insert(letter.exchange.clone());
    }

    /// Why nothing is sent to this exchange at the moment.
    pub(crate) fn refusal(&self, exchange: &ShortString) -> Option<Error> {
        let known = self.lock();
        let (at, error) = known.refused.get(exchange)?;
        (at.elapsed() < REFUSED_FOR).then(|| error.clone())
    }

    /// Why this letter is not worth sending: the broker said what it takes.
    pub(crate) fn too_large(&self, letter: &Letter) -> Option<Error> {
        let (largest, at) = self.lock().largest?;
        (letter.payload.len() > largest && at.elapsed() < LIMIT_FOR).then(|| {
            let what = format!(
                "it has {} bytes and the broker's max_message_size is {largest}; raise that limit, or send it elsewhere",
                letter.payload.len()
            );
            Error::new(ErrorKind::TooLarge, OPERATION, what)
        })
    }

    /// Learns from the error a channel was closed with; answers the exchange that was refused as a whole.
    pub(crate) fn learn(&self, error: &lapin::Error) -> Option<ShortString> {
        let Lapin::ProtocolError(protocol) = error.kind() else { return None };
        let said = protocol.get_message().as_str();
        let mut known = self.lock();
        if let Some(largest) = largest_message(said) {
            known.largest = Some((largest, Instant::now()));
        }
        let is_missing = *protocol.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND);
        let is_denied = *protocol.kind() == AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED);
        // Rights on topics are of a routing key, not of the exchange.
        if !is_missing && (!is_denied || said.contains("topic '")) {
            return None;
        }
        let name = said.split_once("exchange '")?.1.split_once('\'')?.0;
        let exchange = ShortString::try_new(if name == "amq.default" { "" } else { name }).ok()?;
        if known.refused.len() >= MOST {
            known.refused.clear();
        }
        known.proven.remove(&exchange);
        known.refused.insert(exchange.clone(), (Instant::now(), cut(error.clone())));
        Some(exchange)
    }
}

/// The limit in "message size 5000 is larger than configured max size 1000".
fn largest_message(said: &str) -> Option<usize> {
    let limit = said.split_once("larger than configured max size ")?.1;
    limit.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

fn hash(letter: &Letter) -> u64 {
    let mut hasher = DefaultHasher::new();
    (letter.exchange.as_str(), letter.routing_key.as_str(), letter.payload.len()).hash(&mut hasher);
    letter.properties.message_id().as_ref().map(ShortString::as_str).hash(&mut hasher);
    own_id(&letter.properties).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn closed(kind: AMQPSoftError, said: &str) -> lapin::Error {
        Lapin::ProtocolError(AMQPError::new(kind.into(), said.into())).into()
    }

    #[test]
    fn what_the_broker_says_tells_which_exchange_it_refuses() {
        let suspects = Suspects::default();
        let (missing, denied) = (AMQPSoftError::NOTFOUND, AMQPSoftError::ACCESSREFUSED);
        for (kind, said, exchange) in [
            (&missing, "NOT_FOUND - no exchange 'shop' in vhost '/'", Some("shop")),
            (&denied, "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused", Some("")),
            (&denied, "ACCESS_REFUSED - cannot publish to internal exchange 'i' in vhost '/'", Some("i")),
            (&denied, "ACCESS_REFUSED - access to topic 'a.b' in exchange 'x' in vhost '/' refused", None),
            (&AMQPSoftError::PRECONDITIONFAILED, "PRECONDITION_FAILED - fault in exchange 'y'", None),
        ] {
            let learned = suspects.learn(&closed(kind.clone(), said));
            assert_eq!(learned, exchange.map(ShortString::from), "{said}");
            if let Some(exchange) = learned {
                assert!(suspects.refusal(&exchange).is_some() && !suspects.is_proven(&exchange));
            }
        }
    }

    #[test]
    fn the_brokers_limit_is_learned() {
        let said = "PRECONDITION_FAILED - message size 5000 is larger than configured max size 1000";
        assert_eq!(largest_message(said), Some(1000));
        assert_eq!(largest_message("PRECONDITION_FAILED - anything else"), None);
    }
}
