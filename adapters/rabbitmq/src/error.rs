//! Classifies errors of the AMQP library as [`onceward::Error`], with the operation, the cause and the fix.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use onceward::{Error, ErrorKind};

type Operation = Cow<'static, str>;

/// Classifies the error of `operation` ("consume queue orders").
pub(crate) fn classify(operation: impl Into<Operation>, error: lapin::Error) -> Error {
    use lapin::ErrorKind as Lapin;
    let (kind, what) = match error.kind() {
        Lapin::IOError(error) => return classify_io(operation, error),
        Lapin::ProtocolError(error) => classify_protocol(error.kind(), error.get_message().as_str()),
        Lapin::MissingHeartbeatError => {
            (ErrorKind::Unavailable, "the broker missed two heartbeats; the connection is closed")
        }
        Lapin::ChannelsLimitReached => (
            ErrorKind::Unavailable,
            "the broker allows no more channels on this connection; raise channel_max or use fewer",
        ),
        Lapin::InvalidChannel(_) | Lapin::InvalidChannelState(..) | Lapin::InvalidConnectionState(_) => {
            (ErrorKind::Unavailable, "the channel or connection is closed")
        }
        Lapin::ParsingError(_) => {
            (ErrorKind::Unavailable, "the broker sent bytes that are not AMQP 0-9-1; check the address")
        }
        Lapin::InvalidProtocolVersion(_) => {
            (ErrorKind::Config, "the broker does not speak AMQP 0-9-1; check the address")
        }
        Lapin::AuthProviderError(_) => (ErrorKind::Denied, "the credentials could not be prepared"),
        Lapin::NoDefaultRuntime | Lapin::FutureCompleted | Lapin::SerialisationError(_) => {
            (ErrorKind::Internal, "the AMQP library was used incorrectly; this is a bug")
        }
        Lapin::RuntimeShutdownError(_) => (ErrorKind::Unavailable, "the program is shutting down"),
        _ => (ErrorKind::Unknown, "the AMQP library reported an error"),
    };
    Error::new(kind, operation, what).with_source(error)
}

/// True if an error closes no more than a channel.
pub(crate) fn is_of_channel(error: &lapin::Error) -> bool {
    use lapin::ErrorKind as Lapin;
    error.is_amqp_soft_error()
        || matches!(error.kind(), Lapin::InvalidChannel(_) | Lapin::InvalidChannelState(..))
}

/// True if an error of [`classify`] may be that of the whole connection, which must not be used again then: it reports to waiting calls
/// before its own state changes, and a channel that is opened on it in between never opens.
pub(crate) fn is_of_connection(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<lapin::Error>());
    error.kind() == ErrorKind::Unavailable && !source.is_some_and(is_of_channel)
}

/// The broker's `consumer_timeout`, if that is why it closed the channel.
pub(crate) fn consumer_timeout(error: &lapin::Error) -> Option<Duration> {
    let lapin::ErrorKind::ProtocolError(error) = error.kind() else { return None };
    let text = error.get_message().as_str();
    if !text.contains(ACK_TIMED_OUT) {
        return None;
    }
    let number = text.split_once("imeout value used: ")?.1;
    let millis = number.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// Part of RabbitMQ's text when `consumer_timeout` has expired.
const ACK_TIMED_OUT: &str = "delivery acknowledgement on channel";

fn classify_protocol(kind: &AMQPErrorKind, text: &str) -> (ErrorKind, &'static str) {
    use {AMQPHardError as Hard, AMQPSoftError as Soft};
    match kind {
        AMQPErrorKind::Soft(Soft::ACCESSREFUSED) => (
            ErrorKind::Denied,
            "access refused: check user, password and the user's rights in this virtual host, and whether another \
             consumer is exclusive on the queue",
        ),
        AMQPErrorKind::Soft(Soft::NOTFOUND) => (
            ErrorKind::Config,
            "no such queue or exchange; declare it in this virtual host, or check its name",
        ),
        AMQPErrorKind::Soft(Soft::RESOURCELOCKED) => {
            (ErrorKind::Unavailable, "the queue is exclusive to another connection")
        }
        AMQPErrorKind::Soft(Soft::PRECONDITIONFAILED) if text.contains("larger than configured max size") => {
            (
                ErrorKind::TooLarge,
                "the message is larger than the broker's max_message_size; raise that limit, or publish a smaller message",
            )
        }
        AMQPErrorKind::Soft(Soft::PRECONDITIONFAILED) if text.contains("inequivalent arg") => (
            ErrorKind::Config,
            "it exists with other arguments; delete it once it is empty, or use another name",
        ),
        AMQPErrorKind::Soft(Soft::PRECONDITIONFAILED) if text.contains(ACK_TIMED_OUT) => (
            ErrorKind::Unavailable,
            "a delivery stayed unacknowledged longer than the broker's consumer_timeout; raise it, or set ack_timeout to its value",
        ),
        AMQPErrorKind::Soft(Soft::PRECONDITIONFAILED) => {
            (ErrorKind::Unavailable, "the broker closed the channel: a precondition failed")
        }
        AMQPErrorKind::Hard(Hard::NOTALLOWED) => (
            ErrorKind::Denied,
            "not allowed: check that the virtual host exists and that the user has access to it",
        ),
        AMQPErrorKind::Hard(Hard::INVALIDPATH) => {
            (ErrorKind::Config, "no such virtual host; check the path of the URL")
        }
        AMQPErrorKind::Hard(Hard::CONNECTIONFORCED) => {
            (ErrorKind::Unavailable, "the broker closed the connection, as on shutdown")
        }
        _ => (ErrorKind::Unavailable, "the broker reported an error"),
    }
}

/// Classifies the error of a socket or a file.
pub(crate) fn classify_io(operation: impl Into<Operation>, error: &io::Error) -> Error {
    let what = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "the connection was refused; check that the broker is running, and the port"
        }
        io::ErrorKind::InvalidData => "invalid response; check address, port and certificate",
        _ => "the connection failed",
    };
    // The library shares the error and it is not `Clone`; its text is kept.
    Error::new(ErrorKind::Unavailable, operation, what).with_source(error.to_string())
}

/// An invalid configuration.
pub(crate) fn config(operation: impl Into<Operation>, what: impl Into<Operation>) -> Error {
    Error::new(ErrorKind::Config, operation, what)
}

/// A timeout.
pub(crate) fn timeout(operation: impl Into<Operation>, what: impl Into<Operation>) -> Error {
    Error::new(ErrorKind::Timeout, operation, what)
}
