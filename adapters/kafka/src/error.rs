//! Errors of the Kafka client as [`onceward::Error`]: what was attempted, what was wrong, and what to do.

use std::borrow::Cow;

use onceward::{Error, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// The error of `operation` ("receive from topic orders").
pub fn kafka(operation: impl Into<Cow<'static, str>>, error: KafkaError) -> Error {
    let (kind, what) = match (&error, error.rdkafka_error_code()) {
        (KafkaError::ClientConfig(_, reason, name, value), _) => {
            return property(operation, reason, name, value);
        }
        (KafkaError::ClientCreation(_), _) => {
            (ErrorKind::Config, "the client's properties cannot be used; the cause names the property")
        }
        (_, Some(code)) => classified(code),
        _ => (ErrorKind::Unknown, "the Kafka client reports an error"),
    };
    Error::new(kind, operation, what).with_source(error)
}

/// A property that the client does not take. Its value is not told: who mistypes a name gives a password to another one.
fn property(operation: impl Into<Cow<'static, str>>, reason: &str, name: &str, value: &str) -> Error {
    let reason = if value.is_empty() { reason.to_owned() } else { reason.replace(value, "…") };
    config(operation, format!("the client does not take the property {name}: {reason}; correct or remove it"))
}

/// The broker does not accept who this is, or nobody can say.
pub fn is_login(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(Code::Authentication | Code::SaslAuthenticationFailed))
}

fn classified(code: Code) -> (ErrorKind, &'static str) {
    match code {
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => (
            ErrorKind::Config,
            "the broker does not know the topic or partition; create it, or check its name",
        ),
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => (
            ErrorKind::Denied,
            "the broker refuses; the user needs Read on topic and group, Write on what it publishes to",
        ),
        Code::Authentication | Code::SaslAuthenticationFailed => {
            (ErrorKind::Denied, "the broker refuses the credentials; check mechanism, user and password")
        }
        Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::NoOffset => (
            ErrorKind::Config,
            "the committed offset is not in the log and auto.offset.reset is error; records may be gone by retention",
        ),
        Code::Fatal
        | Code::Fenced
        | Code::FencedInstanceId
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch => (
            ErrorKind::Internal,
            "the client cannot go on: another one with the same group.instance.id or transactional.id took its place, or \
             the broker lost its state",
        ),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => (
            ErrorKind::TooLarge,
            "the message is larger than message.max.bytes of the client, or max.message.bytes of the topic; raise it, or keep the payload elsewhere",
        ),
        Code::InvalidRecord | Code::InvalidTimestamp => (
            ErrorKind::Corrupt,
            "the topic does not take the record: a compacted topic takes none without a key, and each topic bounds timestamps \
             (message.timestamp.before.max.ms, message.timestamp.after.max.ms); mend the record or the topic's configuration",
        ),
        Code::MessageTimedOut | Code::OperationTimedOut | Code::RequestTimedOut => {
            (ErrorKind::Timeout, "no answer in time; it may have happened or not")
        }
        Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve => (
            ErrorKind::Unavailable,
            "no broker can be reached, or it hangs up; check bootstrap.servers, security.protocol and the network",
        ),
        Code::LeaderNotAvailable => (
            ErrorKind::Unavailable,
            "a partition has no leader at this moment; see to it that its brokers run",
        ),
        Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress => {
            (ErrorKind::Unavailable, "the group's coordinator starts or moves; it is there again in a moment")
        }
        Code::QueueFull => {
            (ErrorKind::Throttled, "the client's queue is full; the broker is slower than the publisher")
        }
        _ => (ErrorKind::Unknown, "the Kafka client reports an error"),
    }
}

/// A value that cannot be used.
pub fn config(operation: impl Into<Cow<'static, str>>, what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, operation, what)
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::producer::BaseProducer;

    use super::*;

    #[test]
    fn a_property_that_is_not_taken_is_named_without_its_value() {
        for name in ["sasl.pasword", "security.protocol", "session.timeout.ms"] {
            let made = ClientConfig::new().set(name, "hunter2").create::<BaseProducer>();
            let error = kafka("publish", made.err().unwrap());
            let said = format!("{error:?}");
            assert_eq!(error.kind(), ErrorKind::Config, "{said}");
            assert!(said.contains(name) && !said.contains("hunter2"), "{said}");
        }
    }
}
