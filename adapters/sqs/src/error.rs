//! Classifies errors of the SQS SDK as [`onceward::Error`], with the operation, the cause and the fix.

use std::borrow::Cow;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::operation::RequestId;
use onceward::{Error, ErrorKind};

use crate::connection::PlaintextEndpoint;

type Operation = Cow<'static, str>;

/// Classifies the error of `operation` ("receive from queue URL").
pub(crate) fn classify<E>(operation: impl Into<Operation>, error: &SdkError<E>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    if let Some(credentials) = find_cause::<_, CredentialsError>(error) {
        let kind = match credentials {
            CredentialsError::CredentialsNotLoaded(_) => ErrorKind::Denied,
            CredentialsError::InvalidConfiguration(_) => ErrorKind::Config,
            _ => ErrorKind::Unavailable,
        };
        let what = "no AWS credentials could be loaded; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile \
                    (AWS_PROFILE), a web identity token, or a role of the container or instance (an emulator takes any)";
        return Error::new(kind, operation, what).with_source(describe_causes(error));
    }
    if find_cause::<_, PlaintextEndpoint>(error).is_some() {
        return Error::new(ErrorKind::Config, operation, PlaintextEndpoint::WHAT);
    }
    let (kind, what) = match error {
        SdkError::TimeoutError(_) => (ErrorKind::Timeout, "no response in time"),
        SdkError::ConstructionFailure(_) => (ErrorKind::Unavailable, "the request could not be built"),
        SdkError::DispatchFailure(_) => (
            ErrorKind::Unavailable,
            "the request could not be sent; check endpoint, region, network and credentials",
        ),
        SdkError::ResponseError(_) => (ErrorKind::Unavailable, "the response is unreadable"),
        _ => match error.code() {
            Some(code) => classify_code(code),
            None => (ErrorKind::Unavailable, "SQS reported an error"),
        },
    };
    Error::new(kind, operation, what).with_source(describe_causes(error))
}

/// The first cause of type `C`.
fn find_cause<E, C>(error: &SdkError<E>) -> Option<&C>
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

/// Adds to the error of a queue outside AWS that its endpoint has to be configured.
pub(crate) fn with_endpoint_hint(url: &str, error: Error) -> Error {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or(rest);
    let name = host.rsplit_once('@').map_or(host, |(_, name)| name).split(':').next().unwrap_or(host);
    let is_aws = [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"].iter().any(|end| name.ends_with(end));
    if is_aws || error.kind() == ErrorKind::Throttled {
        return error;
    }
    let what = format!(
        "the host of the queue URL, {name}, is not an AWS host; for an emulator or a private endpoint, set `endpoint` to \
         its scheme, host and port, since requests go to AWS otherwise"
    );
    Error::new(error.kind(), format!("use queue {url}"), what).with_source(error)
}

/// Describes the causes, with the request id that AWS support needs. The SDK's own debug text contains the whole
/// response, and with it payloads.
fn describe_causes<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    if let Some(message) = error.message() {
        text += &format!(": {message}");
    }
    if let Some(id) = error.request_id() {
        text += &format!(" (request {id})");
    }
    text
}

/// Classifies an error code of SQS.
pub(crate) fn classify_code(code: &str) -> (ErrorKind, &'static str) {
    let name = code.rsplit(['#', '.']).next().unwrap_or(code);
    match name {
        "QueueDoesNotExist" | "NonExistentQueue" => {
            (ErrorKind::Config, "no such queue; check URL, region and account")
        }
        "AccessDenied"
        | "AccessDeniedException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException"
        | "KmsAccessDenied" => (
            ErrorKind::Denied,
            "access denied; check the credentials and their rights to receive, delete and change visibility",
        ),
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => {
            (ErrorKind::Unavailable, "the credentials have expired; they will be refreshed")
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
        | "UnsupportedOperation" => (ErrorKind::Unsupported, "SQS rejected the request as invalid"),
        "ThrottlingException" | "Throttling" | "RequestThrottled" | "ThrottledException" | "KmsThrottled" => {
            (ErrorKind::Throttled, "SQS throttles requests")
        }
        _ => (ErrorKind::Unavailable, "SQS reported an error"),
    }
}

/// Fails without a region: the SDK would only report that it cannot find an endpoint.
pub(crate) fn require_region(client: &Client, operation: impl Into<Operation>) -> Result<(), Error> {
    if client.config().region().is_some() {
        return Ok(());
    }
    Err(config(operation, "no region is set; set it in the configuration or in AWS_REGION"))
}

/// True if the credentials are valid but lack the right.
pub(crate) fn is_access_denied(code: &str) -> bool {
    matches!(code.rsplit(['#', '.']).next().unwrap_or(code), "AccessDenied" | "AccessDeniedException")
}

/// True if a receipt handle is no longer valid. SQS has no code of its own for each case: an expired handle of a FIFO
/// queue is an `InvalidParameterValue`, as is an invalid request.
pub(crate) fn is_expired_handle(code: &str, message: Option<&str>) -> bool {
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
    use super::*;

    #[test]
    fn codes_are_classified_with_and_without_their_namespace() {
        for (code, kind) in [
            ("com.amazonaws.sqs#QueueDoesNotExist", ErrorKind::Config),
            ("AWS.SimpleQueueService.NonExistentQueue", ErrorKind::Config),
            ("AccessDenied", ErrorKind::Denied),
            ("ExpiredToken", ErrorKind::Unavailable),
            ("OverLimit", ErrorKind::Throttled),
            ("InternalError", ErrorKind::Unavailable),
        ] {
            assert_eq!(classify_code(code).0, kind, "{code}");
        }
    }

    #[test]
    fn a_handle_is_expired_only_if_the_error_names_the_handle() {
        let expired =
            "Value AQEB for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.";
        assert!(is_expired_handle("com.amazonaws.sqs#ReceiptHandleIsInvalid", None));
        assert!(is_expired_handle("InvalidParameterValue", Some(expired)));
        for (code, message) in [
            ("InvalidParameterValue", None),
            ("InvalidParameterValue", Some("Value for parameter QueueUrl is invalid.")),
            ("InvalidIdFormat", Some("the receipt handle has expired")),
            ("InternalError", Some("the receipt handle has expired")),
        ] {
            assert!(!is_expired_handle(code, message), "{code} {message:?}");
        }
    }

    #[test]
    fn a_url_outside_aws_hints_at_the_endpoint_option() {
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
