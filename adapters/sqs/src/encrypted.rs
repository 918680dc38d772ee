//! Keeps requests from going without TLS to another host: [`OnlyEncrypted`].

use std::fmt;

use aws_sdk_sqs::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_sqs::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sqs::error::BoxError;
use onceward::is_local_host;
use url::Url;

/// Looks at each request before it is signed, wherever its endpoint came from: the configuration, `AWS_ENDPOINT_URL`, a profile.
///
/// A signature does not show the secret key. But whoever reads a request may send it again for a quarter of an hour, reads
/// the session token and the messages, and can answer in the place of SQS.
#[derive(Debug)]
pub(crate) struct OnlyEncrypted;

impl Intercept for OnlyEncrypted {
    fn name(&self) -> &'static str {
        "OnlyEncrypted"
    }

    fn read_before_signing(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if is_open(context.request().uri()) { Err(Box::new(OpenEndpoint)) } else { Ok(()) }
    }
}

/// True for an address that is not of HTTPS and on another host.
pub(crate) fn is_open(address: &str) -> bool {
    let Ok(url) = Url::parse(address) else { return true };
    url.scheme() != "https" && !url.host_str().is_some_and(is_local_host)
}

/// What was kept from being sent.
#[derive(Debug)]
pub(crate) struct OpenEndpoint;

impl OpenEndpoint {
    pub(crate) const WHAT: &str = "the endpoint (of the configuration, AWS_ENDPOINT_URL or a profile) is http:// on another host: signed \
                                   requests, a session token and messages could be read on the way; write https://, or allow it \
                                   explicitly (allow_plaintext) on a network where nobody else can be";
}

impl fmt::Display for OpenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing was sent")
    }
}

impl std::error::Error for OpenEndpoint {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_to_other_hosts_over_tls_only() {
        for open in [
            "http://sqs.example/",
            "http://10.0.0.1:9324/1/q?a=b",
            "http://localhost.evil.example/",
            "http://localhost@evil.example/",
            "no url",
        ] {
            assert!(is_open(open), "{open}");
        }
        for fine in [
            "https://sqs.eu-west-1.amazonaws.com/",
            "http://127.0.0.1:9324/",
            "http://localhost/",
            "http://[::1]:1/",
        ] {
            assert!(!is_open(fine), "{fine}");
        }
    }
}
