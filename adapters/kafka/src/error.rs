//! Errors of the Kafka client as [`onceward::Error`]: what was attempted, what was wrong, and what to do.

use std::borrow::Cow;

use onceward::{Error, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// The error of `operation` ("receive from topic orders").
pub(crate) fn kafka(operation: impl Into<Cow<'static, str>>, error: KafkaError) -> Error {
    let (kind, what) = match (&error, error.rdkafka_error_code()) {
        (KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_), _) => {
            (ErrorKind::Config, "the client's properties cannot be used; the cause names the property")
        }
        (_, Some(code)) => classified(code),
        _ => (ErrorKind::Unknown, "the Kafka client reports an error"),
    };
    Error::new(kind, operation, what).with_source(error)
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
            ErrorKind::Corrupt,
            "the message is larger than message.max.bytes of client or topic; raise it, or keep the payload elsewhere",
        ),
        Code::MessageTimedOut | Code::OperationTimedOut | Code::RequestTimedOut => {
            (ErrorKind::Timeout, "no answer in time; it may have happened or not")
        }
        Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve => {
            (ErrorKind::Unavailable, "no broker can be reached; check bootstrap.servers and the network")
        }
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
pub(crate) fn config(operation: impl Into<Cow<'static, str>>, what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, operation, what)
}
