//! Errors of the AMQP library as [`onceward::Error`]: what was attempted, what was wrong, and what to do.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use onceward::{Error, ErrorKind};

type Operation = Cow<'static, str>;

/// The error of `operation` ("consume queue orders").
pub(crate) fn amqp(operation: impl Into<Operation>, error: lapin::Error) -> Error {
    use lapin::ErrorKind as Lapin;
    let (kind, what) = match error.kind() {
        Lapin::IOError(error) => return io(operation, error),
        Lapin::ProtocolError(error) => protocol(error.kind(), error.get_message().as_str()),
        Lapin::MissingHeartbeatError => {
            (ErrorKind::Unavailable, "the broker sent nothing for two heartbeats; the connection is dead")
        }
        Lapin::ChannelsLimitReached => (
            ErrorKind::Unavailable,
            "the broker allows no more channels on this connection; raise channel_max or use fewer",
        ),
        Lapin::InvalidChannel(_) | Lapin::InvalidChannelState(..) | Lapin::InvalidConnectionState(_) => {
            (ErrorKind::Unavailable, "the channel or connection is closed")
        }
        Lapin::ParsingError(_) => (
            ErrorKind::Unavailable,
            "the broker sent bytes that are not AMQP 0-9-1; check that the address is RabbitMQ's",
        ),
        Lapin::InvalidProtocolVersion(_) => {
            (ErrorKind::Config, "the broker does not speak AMQP 0-9-1; check the address")
        }
        Lapin::AuthProviderError(_) => (ErrorKind::Denied, "the credentials could not be made ready"),
        Lapin::NoDefaultRuntime | Lapin::FutureCompleted | Lapin::SerialisationError(_) => {
            (ErrorKind::Internal, "the AMQP library was used wrongly; this is a fault of the program")
        }
        Lapin::RuntimeShutdownError(_) => (ErrorKind::Unavailable, "the program is shutting down"),
        _ => (ErrorKind::Unknown, "the AMQP library reports an error"),
    };
    Error::new(kind, operation, what).with_source(error)
}

/// How long a delivery may stay unacknowledged, if that is what the broker closed a channel for.
pub(crate) fn consumer_timeout(error: &lapin::Error) -> Option<Duration> {
    let lapin::ErrorKind::ProtocolError(error) = error.kind() else { return None };
    let said = error.get_message().as_str();
    if !said.contains(ACK_TIMED_OUT) {
        return None;
    }
    let number = said.split_once("imeout value used: ")?.1;
    let millis = number.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// What RabbitMQ says when `consumer_timeout` is over.
const ACK_TIMED_OUT: &str = "delivery acknowledgement on channel";

fn protocol(kind: &AMQPErrorKind, said: &str) -> (ErrorKind, &'static str) {
    use {AMQPHardError as Hard, AMQPSoftError as Soft};
    match kind {
        AMQPErrorKind::Soft(Soft::ACCESSREFUSED) => (
            ErrorKind::Denied,
            "the broker refuses: check user, password and the user's rights in this virtual host, and whether another \
             consumer has the queue for itself",
        ),
        AMQPErrorKind::Soft(Soft::NOTFOUND) => (
            ErrorKind::Config,
            "the broker does not know it; declare the queue or exchange in this virtual host, or check its name",
        ),
        AMQPErrorKind::Soft(Soft::RESOURCELOCKED) => {
            (ErrorKind::Unavailable, "the queue is exclusive to another connection")
        }
        AMQPErrorKind::Soft(Soft::PRECONDITIONFAILED) if said.contains("larger than configured max size") => {
            (
                ErrorKind::TooLarge,
                "the message is larger than the broker's max_message_size; raise that limit, or send it elsewhere",
            )
        }
        AMQPErrorKind::Soft(Soft::PRECONDITIONFAILED) if said.contains("inequivalent arg") => (
            ErrorKind::Config,
            "it exists with other arguments; delete it once it is empty, or use another name",
        ),
        AMQPErrorKind::Soft(Soft::PRECONDITIONFAILED) if said.contains(ACK_TIMED_OUT) => (
            ErrorKind::Unavailable,
            "a delivery was held longer than the broker's consumer_timeout; raise it, or write its value as ack_timeout",
        ),
        AMQPErrorKind::Soft(Soft::PRECONDITIONFAILED) => {
            (ErrorKind::Unavailable, "the broker closed the channel: a precondition failed")
        }
        AMQPErrorKind::Hard(Hard::NOTALLOWED) => (
            ErrorKind::Denied,
            "the broker does not allow it: check that the virtual host exists and the user may enter it",
        ),
        AMQPErrorKind::Hard(Hard::INVALIDPATH) => {
            (ErrorKind::Config, "there is no such virtual host; check the URL's path")
        }
        AMQPErrorKind::Hard(Hard::CONNECTIONFORCED) => {
            (ErrorKind::Unavailable, "the broker closed the connection, as when it is stopped")
        }
        _ => (ErrorKind::Unavailable, "the broker reports an error"),
    }
}

/// The error of a socket or a file.
pub(crate) fn io(operation: impl Into<Operation>, error: &io::Error) -> Error {
    let what = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "the connection was refused; check that the broker runs and the port"
        }
        io::ErrorKind::InvalidData => {
            "the other side's answer makes no sense: check address, port and certificate"
        }
        _ => "the connection failed",
    };
    // The library shares it and it cannot be cloned; its text is all that is of use.
    Error::new(ErrorKind::Unavailable, operation, what).with_source(error.to_string())
}

/// A configuration that cannot be used.
pub(crate) fn config(operation: impl Into<Operation>, what: impl Into<Operation>) -> Error {
    Error::new(ErrorKind::Config, operation, what)
}

/// No answer in time.
pub(crate) fn timeout(operation: impl Into<Operation>, what: impl Into<Operation>) -> Error {
    Error::new(ErrorKind::Timeout, operation, what)
}
