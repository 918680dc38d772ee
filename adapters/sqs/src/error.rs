//! Errors of the SQS SDK as [`onceward::Error`]: what was attempted, what was wrong, and what to do.

use std::borrow::Cow;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::operation::RequestId;
use onceward::{Error, ErrorKind};

use crate::encrypted::OpenEndpoint;

type Operation = Cow<'static, str>;

/// The error of `operation` ("receive from queue URL").
pub(crate) fn sdk<E>(operation: impl Into<Operation>, error: &SdkError<E>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    if let Some(credentials) = cause::<_, CredentialsError>(error) {
        let kind = match credentials {
            CredentialsError::CredentialsNotLoaded(_) => ErrorKind::Denied,
            CredentialsError::InvalidConfiguration(_) => ErrorKind::Config,
            _ => ErrorKind::Unavailable,
        };
        let what = "no AWS credentials could be loaded; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile \
                    (AWS_PROFILE), a web identity token, or a role of the container or instance (an emulator takes any)";
        return Error::new(kind, operation, what).with_source(causes(error));
    }
    if cause::<_, OpenEndpoint>(error).is_some() {
        return Error::new(ErrorKind::Config, operation, OpenEndpoint::WHAT);
    }
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

/// The error of type `C`, if that is a cause.
fn cause<E, C>(error: &SdkError<E>) -> Option<&C>
where
    E: std::error::Error + 'static,
    C: std::error::Error + 'static,
{
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        if let Some(found) = next.downcast_ref() {
            return Some(found);
        }
        cause = next.source();
    }
    None
}

/// Adds to an error of a queue whose URL is not one of AWS that its endpoint has to be configured.
pub(crate) fn with_endpoint_hint(url: &str, error: Error) -> Error {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or(rest);
    let name = host.rsplit_once('@').map_or(host, |(_, name)| name).split(':').next().unwrap_or(host);
    let is_aws = [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"].iter().any(|end| name.ends_with(end));
    if is_aws || error.kind() == ErrorKind::Throttled {
        return error;
    }
    let what = format!(
        "the queue's URL names {name}, which is not a host of AWS; if it is an emulator or a private endpoint, configure \
         `endpoint` with its scheme, host and port, or the calls go to AWS"
    );
    Error::new(error.kind(), format!("use queue {url}"), what).with_source(error)
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
        "InvalidParameterValue"
        | "InvalidParameterValueException"
        | "InvalidMessageContents"
        | "InvalidAttributeValue"
        | "BatchRequestTooLong"
        | "UnsupportedOperation" => (ErrorKind::Unsupported, "SQS refuses the request as it is"),
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

/// True if a receipt handle settles nothing any more. SQS has no code of its own for each case: an expired handle of a FIFO queue
/// is an `InvalidParameterValue`, as is a request that is wrong.
pub(crate) fn is_gone(code: &str, message: Option<&str>) -> bool {
    let says = |text: &str| message.is_some_and(|message| message.to_ascii_lowercase().contains(text));
    match code.rsplit(['#', '.']).next().unwrap_or(code) {
        "ReceiptHandleIsInvalid" | "MessageNotInflight" => true,
        "InvalidParameterValue" | "InvalidParameterValueException" => {
            says("receipt handle has expired")
                || says("message does not exist or is not available for visibility timeout change")
        }
        _ => false,
    }
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
    }

    #[test]
    fn a_handle_is_gone_only_if_sqs_says_so_of_the_handle() {
        let expired =
            "Value AQEB for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.";
        assert!(is_gone("com.amazonaws.sqs#ReceiptHandleIsInvalid", None));
        assert!(is_gone("InvalidParameterValue", Some(expired)));
        for (code, message) in [
            ("InvalidParameterValue", None),
            ("InvalidParameterValue", Some("Value for parameter QueueUrl is invalid.")),
            ("InvalidIdFormat", Some("the receipt handle has expired")),
            ("InternalError", Some("the receipt handle has expired")),
        ] {
            assert!(!is_gone(code, message), "{code} {message:?}");
        }
    }

    #[test]
    fn a_url_that_is_not_of_aws_asks_for_the_endpoint() {
        let failed = || Error::new(ErrorKind::Config, "read", "there is no such queue");
        let of = |url| with_endpoint_hint(url, failed()).to_string();
        assert!(!of("https://sqs.eu-west-1.amazonaws.com/1/q").contains("endpoint"));
        assert!(!of("https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com/1/q").contains("endpoint"));
        for url in [
            "http://localhost:9324/000000000000/q",
            "http://127.0.0.1:9324/q",
            "https://amazonaws.com.evil/q",
        ] {
            assert!(of(url).contains("`endpoint`"), "{url}");
        }
    }
}
