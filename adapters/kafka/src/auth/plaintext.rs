//! Rejects configurations that send a login to other hosts in plaintext, or without verifying the broker.

use std::collections::BTreeMap;

use onceward::Error;
use onceward::adapter::{host_of, is_local_host};

use crate::error;

/// Checks the addresses and properties of a client, as librdkafka reads them.
///
/// # Errors
/// [`ErrorKind::Config`](onceward::ErrorKind::Config) with the fix, never with a value.
pub(crate) fn check(
    operation: &'static str,
    brokers: &[String],
    properties: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let get = |name: &str| properties.get(name).map(|value| value.trim().to_ascii_lowercase());
    let rejected = |what: &str| {
        let fix = "or allow it explicitly (allow_plaintext) on a trusted network";
        Err(error::config_error(operation, format!("{what}, {fix}")))
    };
    if get("sasl.oauthbearer.token.endpoint.url").is_some_and(|url| is_insecure_url(&url)) {
        return rejected(
            "sasl.oauthbearer.token.endpoint.url is http:// on another host: the client secret would be sent in plaintext; use https://",
        );
    }
    let named = ["bootstrap.servers", "metadata.broker.list"].iter().filter_map(|name| properties.get(*name));
    let brokers = brokers.iter().chain(named).flat_map(|brokers| brokers.split(','));
    if brokers.filter(|broker| !broker.trim().is_empty()).all(|broker| is_local_host(host_of(broker))) {
        return Ok(());
    }
    let protocol = get("security.protocol").unwrap_or_default();
    if protocol == "sasl_plaintext" {
        return rejected(
            "the login would be sent to another host without TLS (security.protocol); use sasl_ssl",
        );
    }
    if !protocol.ends_with("ssl") {
        return Ok(());
    }
    if get("enable.ssl.certificate.verification").is_some_and(|on| !matches!(&*on, "true" | "t" | "1")) {
        return rejected(
            "enable.ssl.certificate.verification is off, so that anyone on the network path can impersonate the brokers; remove it and set \
             ssl.ca.location to their CA",
        );
    }
    if get("ssl.endpoint.identification.algorithm").is_some_and(|algorithm| algorithm != "https") {
        return rejected(
            "ssl.endpoint.identification.algorithm is off, so that the owner of any valid certificate can impersonate the brokers; remove it",
        );
    }
    Ok(())
}

/// Returns true for a URL without HTTPS that leads to another host.
fn is_insecure_url(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return !url.starts_with("https://") };
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    !is_local_host(host_of(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(brokers: &str, properties: &[(&str, &str)]) -> Option<String> {
        let properties =
            properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        check("consume", &[brokers.to_owned()], &properties).err().map(|error| error.to_string())
    }

    #[test]
    fn a_login_is_sent_to_other_hosts_over_verified_tls_only() {
        let sasl = ("security.protocol", "sasl_ssl");
        for properties in [
            &[("security.protocol", "sasl_plaintext")][..],
            &[("security.protocol", "SASL_PLAINTEXT"), ("sasl.mechanisms", "SCRAM-SHA-512")],
            &[sasl, ("enable.ssl.certificate.verification", "false")],
            &[sasl, ("enable.ssl.certificate.verification", "F")],
            &[sasl, ("enable.ssl.certificate.verification", "0")],
            &[("security.protocol", "ssl"), ("ssl.endpoint.identification.algorithm", "None")],
            &[sasl, ("sasl.oauthbearer.token.endpoint.url", "http://login.example/token")],
            &[sasl, ("sasl.oauthbearer.token.endpoint.url", "http://localhost@login.example/")],
        ] {
            for brokers in [
                "kafka.example:9092",
                "127.0.0.1:9092,kafka.example:9092",
                "SASL_SSL://k:9092",
                "[2001:db8::1]:1",
                "::1:1",
            ] {
                assert!(rejection(brokers, properties).is_some(), "{brokers} {properties:?}");
            }
        }
        for properties in [
            &[][..],
            &[("security.protocol", "plaintext")],
            &[sasl, ("enable.ssl.certificate.verification", "true")],
            &[sasl, ("ssl.endpoint.identification.algorithm", "https")],
            &[sasl, ("sasl.oauthbearer.token.endpoint.url", "https://login.example/token")],
            &[sasl, ("sasl.oauthbearer.token.endpoint.url", "http://127.0.0.1:8080/token")],
        ] {
            assert_eq!(rejection("kafka.example:9092", properties), None, "{properties:?}");
        }
        let plain = ("security.protocol", "sasl_plaintext");
        for brokers in ["localhost:9092", "127.0.0.1:9092, [::1]:9093", "SASL_PLAINTEXT://localhost:9092/"] {
            assert_eq!(rejection(brokers, &[plain]), None, "{brokers}");
        }
    }
}
