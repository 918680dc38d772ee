//! Refuses requests without TLS to other hosts: [`RequireTls`].

use std::fmt;

use aws_sdk_sqs::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_sqs::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sqs::error::BoxError;
use onceward::adapter::is_local_host;
use url::Url;

/// Checks each request before it is signed, whatever the origin of its endpoint: the configuration, `AWS_ENDPOINT_URL`,
/// a profile.
///
/// A signature does not reveal the secret key. But anyone who reads a request can replay it for a quarter of an hour,
/// reads the session token and the messages, and can answer in place of SQS.
#[derive(Debug)]
pub(crate) struct RequireTls;

impl Intercept for RequireTls {
    fn name(&self) -> &'static str {
        "RequireTls"
    }

    fn read_before_signing(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if is_plaintext(context.request().uri()) { Err(Box::new(PlaintextEndpoint)) } else { Ok(()) }
    }
}

/// True for an address of another host without HTTPS.
pub(crate) fn is_plaintext(address: &str) -> bool {
    let Ok(url) = Url::parse(address) else { return true };
    url.scheme() != "https" && !url.host_str().is_some_and(is_local_host)
}

/// The error of a refused request.
#[derive(Debug)]
pub(crate) struct PlaintextEndpoint;

impl PlaintextEndpoint {
    pub(crate) const WHAT: &str = "the endpoint (from the configuration, AWS_ENDPOINT_URL or a profile) is http:// on another host: signed \
                                   requests, session token and messages could be read on the network path; write https://, or set \
                                   allow_plaintext on a private network";
}

impl fmt::Display for PlaintextEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was not sent")
    }
}

impl std::error::Error for PlaintextEndpoint {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_other_hosts_require_tls() {
        for open in [
            "http://sqs.example/",
            "http://10.0.0.1:9324/1/q?a=b",
            "http://localhost.evil.example/",
            "http://localhost@evil.example/",
            "no url",
        ] {
            assert!(is_plaintext(open), "{open}");
        }
        for fine in [
            "https://sqs.eu-west-1.amazonaws.com/",
            "http://127.0.0.1:9324/",
            "http://localhost/",
            "http://[::1]:1/",
        ] {
            assert!(!is_plaintext(fine), "{fine}");
        }
    }
}
