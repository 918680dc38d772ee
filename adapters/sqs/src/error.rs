//! Errors of the SQS SDK as [`onceward::Error`]: what was attempted, what was wrong, and what to do.

use std::borrow::Cow;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::operation::RequestId;
use onceward::{Error, ErrorKind};

type Operation = Cow<'static, str>;

/// The error of `operation` ("receive from queue URL").
pub(crate) fn sdk<E>(operation: impl Into<Operation>, error: &SdkError<E>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let (kind, what) = match error {
        SdkError::TimeoutError(_) => (ErrorKind::Timeout, "no answer in time"),
        SdkError::ConstructionFailure(_) => (ErrorKind::Unavailable, "the request could not be made"),
        SdkError::DispatchFailure(_) => (
            ErrorKind::Unavailable,
            "the request could not be sent; check endpoint, region, network and credentials",
        ),
        SdkError::ResponseError(_) => (ErrorKind::Unavailable, "the answer cannot be read"),
        _ => match error.code() {
            Some(code) => coded(code),
            None => (ErrorKind::Unavailable, "SQS reports an error"),
        },
    };
    Error::new(kind, operation, what).with_source(causes(error))
}

/// The causes in words, and what AWS needs to find the call. The SDK's own text for logs holds the whole answer, and with it
/// payloads.
fn causes<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    if let Some(said) = error.message() {
        text += &format!(": {said}");
    }
    if let Some(id) = error.request_id() {
        text += &format!(" (request {id})");
    }
    text
}

/// What an error code of SQS means.
pub(crate) fn coded(code: &str) -> (ErrorKind, &'static str) {
    let name = code.rsplit(['#', '.']).next().unwrap_or(code);
    match name {
        "QueueDoesNotExist" | "NonExistentQueue" => {
            (ErrorKind::Config, "there is no such queue; check URL, region and account")
        }
        "AccessDenied"
        | "AccessDeniedException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException"
        | "KmsAccessDenied" => (
            ErrorKind::Denied,
            "SQS refuses; check the credentials and their rights to receive, delete and change visibility",
        ),
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => {
            (ErrorKind::Unavailable, "the credentials have expired; they are asked for again")
        }
        "OverLimit" => (
            ErrorKind::Throttled,
            "too many messages of this queue are in flight; settle some, or use more queues",
        ),
        "ThrottlingException" | "Throttling" | "RequestThrottled" | "ThrottledException" | "KmsThrottled" => {
            (ErrorKind::Throttled, "SQS asks to slow down")
        }
        _ => (ErrorKind::Unavailable, "SQS reports an error"),
    }
}

/// Without a region the SDK would only say that an endpoint cannot be found.
pub(crate) fn needs_region(client: &Client, operation: impl Into<Operation>) -> Result<(), Error> {
    if client.config().region().is_some() {
        return Ok(());
    }
    Err(config(operation, "no region is known; set one in the configuration or in AWS_REGION"))
}

/// True if the credentials are known and do not have the right to do this.
pub(crate) fn is_without_right(code: &str) -> bool {
    matches!(code.rsplit(['#', '.']).next().unwrap_or(code), "AccessDenied" | "AccessDeniedException")
}

/// True if a receipt handle settles nothing any more.
pub(crate) fn is_gone(code: &str) -> bool {
    let name = code.rsplit(['#', '.']).next().unwrap_or(code);
    matches!(
        name,
        "ReceiptHandleIsInvalid" | "InvalidParameterValue" | "MessageNotInflight" | "InvalidIdFormat"
    )
}

/// A configuration that cannot be used.
pub(crate) fn config(operation: impl Into<Operation>, what: impl Into<Operation>) -> Error {
    Error::new(ErrorKind::Config, operation, what)
}

/// No answer in time.
pub(crate) fn timeout(operation: impl Into<Operation>) -> Error {
    Error::new(ErrorKind::Timeout, operation, "no answer in time; it may or may not have happened")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_apart_with_and_without_their_namespace() {
        for (code, kind) in [
            ("com.amazonaws.sqs#QueueDoesNotExist", ErrorKind::Config),
            ("AWS.SimpleQueueService.NonExistentQueue", ErrorKind::Config),
            ("AccessDenied", ErrorKind::Denied),
            ("ExpiredToken", ErrorKind::Unavailable),
            ("OverLimit", ErrorKind::Throttled),
            ("InternalError", ErrorKind::Unavailable),
        ] {
            assert_eq!(coded(code).0, kind, "{code}");
        }
        assert!(is_gone("com.amazonaws.sqs#ReceiptHandleIsInvalid") && !is_gone("InternalError"));
    }
}
