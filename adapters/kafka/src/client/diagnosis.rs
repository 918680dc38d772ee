//! What keeps a client from its brokers, as librdkafka tells by the way: [`Trouble`].

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::error;

/// The client tries again and again, and tells what stays the same every 30 s.
const FRESH: Duration = Duration::from_secs(60);

/// Why a broker did not let a client in, if that was lately.
///
/// The requests of such a client only run out of time. The reason comes as an event beside them.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<Option<(Instant, Barrier, String)>>);

/// What only a person can mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    Credentials,
    Tls,
}

impl Barrier {
    fn of(error: &KafkaError, reason: &str) -> Option<Self> {
        match error.rdkafka_error_code()? {
            // Without a word about the mechanisms the connection was lost.
            Code::Authentication if reason.contains("mechanisms: (n/a)") => None,
            Code::Authentication | Code::SaslAuthenticationFailed => Some(Self::Credentials),
            Code::SSL => Some(Self::Tls),
            // Something that knows no TLS hangs up at the first word of it.
            Code::BrokerTransportFailure if reason.contains("SSL_HANDSHAKE") => Some(Self::Tls),
            _ => None,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Credentials => "the broker refuses the credentials; check mechanism, user and password",
            Self::Tls => {
                "no connection over TLS comes about; check that the port is one for TLS, that ssl.ca.location has the \
                 authority of the broker's certificate, and that this is for the name in the address"
            }
        }
    }
}

impl Trouble {
    /// Notes an event of the client's.
    pub(crate) fn note(&self, error: &KafkaError, reason: &str) {
        if let Some(barrier) = Barrier::of(error, reason) {
            let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *noted = Some((Instant::now(), barrier, reason.to_owned()));
        }
    }

    fn noted(&self) -> Option<(Barrier, String)> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.as_ref().filter(|(at, ..)| at.elapsed() < FRESH).map(|(_, own, reason)| (*own, reason.clone()))
    }

    /// True if there is no use in waiting.
    pub(crate) fn is_noted(&self) -> bool {
        self.noted().is_some()
    }

    /// The error of `operation`, with what was noted if it is one of those that say nothing. Refused credentials are of the
    /// kind `refused`.
    pub(crate) fn explain(&self, operation: String, error: KafkaError, refused: ErrorKind) -> Error {
        let plain = error::kafka(operation, error);
        let is_vague =
            matches!(plain.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Unknown);
        match self.noted() {
            Some((barrier, reason)) if is_vague => {
                let kind = if barrier == Barrier::Credentials { refused } else { ErrorKind::Unavailable };
                let operation = plain.operation().to_owned();
                Error::new(kind, operation, barrier.what()).with_source(Reason(reason))
            }
            _ => plain,
        }
    }
}

/// In the client's words.
#[derive(Debug)]
struct Reason(String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Reason {}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed_out() -> KafkaError {
        KafkaError::MetadataFetch(Code::OperationTimedOut)
    }

    #[test]
    fn what_ran_out_of_time_since_the_client_was_not_let_in_says_so() {
        let trouble = Trouble::default();
        let explained = |error| trouble.explain("look".into(), error, ErrorKind::Denied);
        trouble.note(&KafkaError::Global(Code::BrokerTransportFailure), "Connect failed: Connection refused");
        let lost =
            "SASL PLAIN mechanism handshake failed: Local: Timed out: broker's supported mechanisms: (n/a)";
        trouble.note(&KafkaError::Global(Code::Authentication), lost);
        assert!(!trouble.is_noted(), "an outage is over at some time");
        assert_eq!(explained(timed_out()).kind(), ErrorKind::Timeout);
        trouble.note(&KafkaError::Global(Code::SSL), "certificate verify failed");
        let error = explained(timed_out());
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let said = format!("{error:?}");
        assert!(said.contains("ssl.ca.location") && said.ends_with("certificate verify failed"), "{said}");
        trouble.note(&KafkaError::Global(Code::Authentication), "Authentication failed");
        assert_eq!(explained(timed_out()).kind(), ErrorKind::Denied);
        let refused = trouble.explain("publish".into(), timed_out(), ErrorKind::Unavailable);
        assert!(refused.is_retryable(), "{refused:?}");
        assert_eq!(explained(KafkaError::MetadataFetch(Code::UnknownTopic)).kind(), ErrorKind::Config);
    }
}
