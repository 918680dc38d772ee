//! Classifies errors of Google's client as [`onceward::Error`], with the operation, the cause and the fix.

use std::borrow::Cow;
use std::sync::Arc;

use google_cloud_gax::error::rpc::Code;
use google_cloud_pubsub::error::{AckError, PublishError};
use onceward::{Error, ErrorKind};

type Operation = Cow<'static, str>;

/// Classifies the error of `operation` ("receive from SUBSCRIPTION").
pub(crate) fn classify(operation: impl Into<Operation>, error: &google_cloud_pubsub::Error) -> Error {
    let (kind, what) = describe(error);
    Error::new(kind, operation, what).with_source(describe_causes(error))
}

fn describe(error: &google_cloud_pubsub::Error) -> (ErrorKind, &'static str) {
    if let Some(status) = error.status() {
        return describe_code(status.code);
    }
    match error.http_status_code() {
        Some(401) => return describe_code(Code::Unauthenticated),
        Some(403) => return describe_code(Code::PermissionDenied),
        Some(404) => return describe_code(Code::NotFound),
        Some(429) => return describe_code(Code::ResourceExhausted),
        _ => {}
    }
    if error.is_authentication() {
        return (
            ErrorKind::Denied,
            "no access token could be obtained; check the credentials (Application Default Credentials or credentials_file), \
             or use anonymous ones with an emulator",
        );
    }
    if error.is_timeout() {
        return (ErrorKind::Timeout, "no response in time; the outcome is unknown");
    }
    if error.is_connect() || error.is_io() || error.is_transport() {
        return (ErrorKind::Unavailable, "the connection failed; check endpoint and network");
    }
    (ErrorKind::Unavailable, "Pub/Sub reported an error")
}

/// Classifies a status code of Pub/Sub.
fn describe_code(code: Code) -> (ErrorKind, &'static str) {
    match code {
        Code::NotFound => (ErrorKind::Config, "it does not exist; check project and name, or create it"),
        Code::PermissionDenied => (
            ErrorKind::Denied,
            "access denied; grant roles/pubsub.subscriber on the subscription, and roles/pubsub.publisher on topics that \
             are published to",
        ),
        Code::Unauthenticated => (
            ErrorKind::Denied,
            "the credentials were rejected; check Application Default Credentials or credentials_file, and the clock",
        ),
        Code::InvalidArgument => (ErrorKind::Unsupported, "Pub/Sub rejected the request as invalid"),
        Code::FailedPrecondition => (
            ErrorKind::Config,
            "Pub/Sub refuses it in this state; the subscription must deliver by pull and be attached to a topic, and the \
             API must be enabled",
        ),
        Code::ResourceExhausted => (ErrorKind::Throttled, "a quota is used up; raise it or send less"),
        Code::DeadlineExceeded => (ErrorKind::Timeout, "no response in time; the outcome is unknown"),
        Code::Unimplemented => (ErrorKind::Unsupported, "the server does not offer this operation"),
        _ => (ErrorKind::Unavailable, "Pub/Sub reported an error"),
    }
}

/// Classifies the error of a client that could not be built.
pub(crate) fn client(operation: &'static str, error: &google_cloud_gax::client_builder::Error) -> Error {
    let (kind, what) = if error.is_default_credentials() {
        (
            ErrorKind::Denied,
            "no credentials were found; set GOOGLE_APPLICATION_CREDENTIALS, run `gcloud auth application-default login`, name \
             a key file, or use anonymous credentials with an emulator",
        )
    } else {
        (ErrorKind::Config, "the client could not be built; check endpoint and credentials")
    };
    Error::new(kind, operation, what).with_source(describe_causes(error))
}

/// Classifies the error of a publish.
pub(crate) fn publish(topic: &str, error: &PublishError) -> Error {
    let operation = format!("publish to {topic}");
    match error {
        PublishError::Rpc(cause) => classify(operation, cause),
        PublishError::OrderingKeyPaused => Error::new(
            ErrorKind::Unavailable,
            operation,
            "it was not sent, since an earlier message of its ordering key failed; it is retried",
        ),
        _ => Error::new(
            ErrorKind::Unavailable,
            operation,
            "the publisher was shut down; the outcome is unknown",
        ),
    }
}

/// The error of an ack that Pub/Sub did not apply; `None` if the delivery was no longer ours, so that the message is
/// redelivered.
pub(crate) fn refused_ack(subscription: &str, error: &AckError) -> Option<Error> {
    let AckError::Rpc { source, .. } = error else { return None };
    let source: &Arc<_> = source;
    let (kind, what) = describe(source);
    // The rights may be missing for each of the following acks: an operator must know.
    (kind == ErrorKind::Denied).then(|| {
        Error::new(kind, format!("ack messages of {subscription}"), what)
            .with_source(describe_causes(&**source))
    })
}

/// Describes an error and its causes in one line.
fn describe_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        // Wrapping errors often repeat the text of their cause.
        if !text.contains(&next_text) {
            text += &format!(": {next_text}");
        }
        cause = next.source();
    }
    text
}

/// An invalid configuration.
pub(crate) fn config(operation: impl Into<Operation>, what: impl Into<Operation>) -> Error {
    Error::new(ErrorKind::Config, operation, what)
}

/// A timeout.
pub(crate) fn timeout(operation: impl Into<Operation>) -> Error {
    Error::new(ErrorKind::Timeout, operation, "no response in time; the outcome is unknown")
}

#[cfg(test)]
mod tests {
    use google_cloud_gax::error::rpc::Status;

    use super::*;

    fn service(code: Code) -> google_cloud_pubsub::Error {
        google_cloud_pubsub::Error::service(Status::default().set_code(code).set_message("why"))
    }

    #[test]
    fn a_status_is_classified_and_its_message_kept() {
        for (code, kind) in [
            (Code::NotFound, ErrorKind::Config),
            (Code::PermissionDenied, ErrorKind::Denied),
            (Code::Unauthenticated, ErrorKind::Denied),
            (Code::ResourceExhausted, ErrorKind::Throttled),
            (Code::DeadlineExceeded, ErrorKind::Timeout),
            (Code::Unavailable, ErrorKind::Unavailable),
            (Code::InvalidArgument, ErrorKind::Unsupported),
        ] {
            let error = classify("receive", &service(code));
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(error.kind() == kind && source.contains("why"), "{code:?} {error:?} {source}");
        }
    }

    #[test]
    fn an_expired_delivery_is_no_error_and_a_missing_right_is_one() {
        assert!(refused_ack("s", &AckError::LeaseExpired).is_none());
        assert!(refused_ack("s", &AckError::ShutdownBeforeAck).is_none());
    }
}
