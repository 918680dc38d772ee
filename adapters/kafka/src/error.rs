//! Classifies errors of the Kafka client as [`onceward::Error`]: the operation, the cause and the fix.

use std::borrow::Cow;

use onceward::{Error, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// Converts a client error to the error of `operation` ("receive from topic orders").
pub fn classify(operation: impl Into<Cow<'static, str>>, error: KafkaError) -> Error {
    let (kind, what) = match (&error, error.rdkafka_error_code()) {
        (KafkaError::ClientConfig(_, reason, name, value), _) => {
            return invalid_property(operation, reason, name, value);
        }
        (KafkaError::ClientCreation(_), _) => {
            (ErrorKind::Config, "invalid client properties; the cause names the property")
        }
        (_, Some(code)) => kind_and_fix(code),
        _ => (ErrorKind::Unknown, "unexpected error of the Kafka client"),
    };
    Error::new(kind, operation, what).with_source(error)
}

/// Reports a property that the client rejects, without its value: a mistyped key may carry a password as its value.
fn invalid_property(operation: impl Into<Cow<'static, str>>, reason: &str, name: &str, value: &str) -> Error {
    let reason = if value.is_empty() { reason.to_owned() } else { reason.replace(value, "…") };
    config_error(operation, format!("invalid client property {name}: {reason}; correct or remove it"))
}

/// Returns true if authentication failed, or no token was available.
pub fn is_authentication(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(Code::Authentication | Code::SaslAuthenticationFailed))
}

fn kind_and_fix(code: Code) -> (ErrorKind, &'static str) {
    match code {
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            (ErrorKind::Config, "the topic or partition does not exist; create it, or check its name")
        }
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => (
            ErrorKind::Denied,
            "authorization failed; the user needs Read on topic and group, and Write on the topics it publishes to",
        ),
        Code::Authentication | Code::SaslAuthenticationFailed => {
            (ErrorKind::Denied, "authentication failed; check mechanism, user and password")
        }
        Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::NoOffset => (
            ErrorKind::Config,
            "the committed offset is outside the log and auto.offset.reset is error; retention may have deleted records",
        ),
        Code::Fatal
        | Code::Fenced
        | Code::FencedInstanceId
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch => (
            ErrorKind::Internal,
            "fatal client error: another client with the same group.instance.id or transactional.id has fenced this one, or \
             the broker has lost its state",
        ),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => (
            ErrorKind::TooLarge,
            "the message exceeds message.max.bytes of the client or max.message.bytes of the topic; raise it, or keep the \
             payload elsewhere",
        ),
        Code::InvalidRecord | Code::InvalidTimestamp => (
            ErrorKind::Corrupt,
            "the topic rejects the record: a compacted topic requires a key, and each topic limits timestamps \
             (message.timestamp.before.max.ms, message.timestamp.after.max.ms); correct the record or the topic's configuration",
        ),
        Code::MessageTimedOut | Code::OperationTimedOut | Code::RequestTimedOut => {
            (ErrorKind::Timeout, "timed out; the outcome is unknown")
        }
        Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve => (
            ErrorKind::Unavailable,
            "no broker is reachable, or the connection was closed; check bootstrap.servers, security.protocol and the network",
        ),
        Code::LeaderNotAvailable => {
            (ErrorKind::Unavailable, "a partition has no leader; check that its brokers are running")
        }
        Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress => {
            (ErrorKind::Unavailable, "the group coordinator is starting or moving; retry in a moment")
        }
        Code::QueueFull => (
            ErrorKind::Throttled,
            "the client's send queue is full: messages arrive faster than the broker takes them",
        ),
        _ => (ErrorKind::Unknown, "unexpected error of the Kafka client"),
    }
}

/// Returns an error of the kind [`ErrorKind::Config`].
pub fn config_error(operation: impl Into<Cow<'static, str>>, what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, operation, what)
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::producer::BaseProducer;

    use super::*;

    #[test]
    fn an_invalid_property_is_named_without_its_value() {
        for name in ["sasl.pasword", "security.protocol", "session.timeout.ms"] {
            let created = ClientConfig::new().set(name, "hunter2").create::<BaseProducer>();
            let error = classify("publish", created.err().unwrap());
            let text = format!("{error:?}");
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
            assert!(text.contains(name) && !text.contains("hunter2"), "{text}");
        }
    }
}
