//! Connection failures that librdkafka reports only as side events: [`ConnectionDiagnosis`].

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use onceward::{Error, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::error;

/// How long a cause is valid. The client reconnects again and again, and repeats an unchanged cause every 30 s.
const VALID_FOR: Duration = Duration::from_secs(60);

/// The most recent reason a broker rejected the client, kept for 60 s.
///
/// The requests of a rejected client merely time out; the cause arrives as a separate event.
#[derive(Debug, Default)]
pub(crate) struct ConnectionDiagnosis(Mutex<Option<RecordedCause>>);

#[derive(Clone, Debug)]
struct RecordedCause {
    at: Instant,
    barrier: ConnectionBarrier,
    reason: String,
}

/// A failure that needs a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionBarrier {
    Credentials,
    Tls,
}

impl ConnectionBarrier {
    fn classify(error: &KafkaError, reason: &str) -> Option<Self> {
        match error.rdkafka_error_code()? {
            // No mechanism list: the connection broke during the handshake.
            Code::Authentication if reason.contains("mechanisms: (n/a)") => None,
            Code::Authentication | Code::SaslAuthenticationFailed => Some(Self::Credentials),
            Code::SSL => Some(Self::Tls),
            // A plaintext listener closes the connection on ClientHello.
            Code::BrokerTransportFailure if reason.contains("SSL_HANDSHAKE") => Some(Self::Tls),
            _ => None,
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Credentials => "authentication failed; check mechanism, user and password",
            Self::Tls => {
                "the TLS handshake failed; check that the port expects TLS, that ssl.ca.location contains the authority of the \
                 broker's certificate, and that the certificate is valid for the host name in the address"
            }
        }
    }
}

impl ConnectionDiagnosis {
    /// Records an error event of a client, if it is the cause of a rejection.
    pub(crate) fn record(&self, error: &KafkaError, reason: &str) {
        if let Some(barrier) = ConnectionBarrier::classify(error, reason) {
            let cause = RecordedCause { at: Instant::now(), barrier, reason: reason.to_owned() };
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
        }
    }

    fn cause(&self) -> Option<RecordedCause> {
        let cause = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cause.clone().filter(|cause| cause.at.elapsed() < VALID_FOR)
    }

    /// Returns true if a broker has rejected the client, so that waiting is useless.
    pub(crate) fn has_cause(&self) -> bool {
        self.cause().is_some()
    }

    /// Classifies the error of `operation`, and adds the recorded cause to errors that carry none. Rejected credentials get the
    /// kind `rejected`.
    pub(crate) fn explain(&self, operation: String, error: KafkaError, rejected: ErrorKind) -> Error {
        let plain = error::classify(operation, error);
        let is_vague =
            matches!(plain.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Unknown);
        match self.cause() {
            Some(RecordedCause { barrier, reason, .. }) if is_vague => {
                let is_credentials = barrier == ConnectionBarrier::Credentials;
                let kind = if is_credentials { rejected } else { ErrorKind::Unavailable };
                let operation = plain.operation().to_owned();
                Error::new(kind, operation, barrier.description()).with_source(ClientReason(reason))
            }
            _ => plain,
        }
    }
}

/// The reason in the client's words.
#[derive(Debug)]
struct ClientReason(String);

impl fmt::Display for ClientReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for ClientReason {}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed_out() -> KafkaError {
        KafkaError::MetadataFetch(Code::OperationTimedOut)
    }

    #[test]
    fn a_timeout_after_a_rejection_carries_the_cause() {
        let diagnosis = ConnectionDiagnosis::default();
        let explained = |error| diagnosis.explain("look".into(), error, ErrorKind::Denied);
        let unreachable = KafkaError::Global(Code::BrokerTransportFailure);
        diagnosis.record(&unreachable, "Connect failed: Connection refused");
        let lost =
            "SASL PLAIN mechanism handshake failed: Local: Timed out: broker's supported mechanisms: (n/a)";
        diagnosis.record(&KafkaError::Global(Code::Authentication), lost);
        assert!(!diagnosis.has_cause(), "an outage ends by itself");
        assert_eq!(explained(timed_out()).kind(), ErrorKind::Timeout);
        diagnosis.record(&KafkaError::Global(Code::SSL), "certificate verify failed");
        let error = explained(timed_out());
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = format!("{error:?}");
        assert!(text.contains("ssl.ca.location") && text.ends_with("certificate verify failed"), "{text}");
        diagnosis.record(&KafkaError::Global(Code::Authentication), "Authentication failed");
        assert_eq!(explained(timed_out()).kind(), ErrorKind::Denied);
        let rejected = diagnosis.explain("publish".into(), timed_out(), ErrorKind::Unavailable);
        assert!(rejected.is_retryable(), "{rejected:?}");
        assert_eq!(explained(KafkaError::MetadataFetch(Code::UnknownTopic)).kind(), ErrorKind::Config);
    }
}
