//! Region and address of SQS, and a client for it: [`SqsEndpoint`].

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use onceward::Error;

use super::require_tls::{PlaintextEndpoint, RequireTls, is_plaintext};
use super::response_limit::limit_responses;
use crate::error;

/// Region and address of SQS. Credentials come from the standard chain: environment, profile, web identity, container,
/// instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqsEndpoint {
    /// The region; default: that of the standard chain.
    pub region: Option<String>,
    /// The URL of an emulator or a private endpoint; default: the region's endpoint.
    pub url: Option<String>,
    /// Allows `http://` to another host, where requests can be read on the network path and replayed for a quarter of
    /// an hour. Default false: refused.
    pub allow_plaintext: bool,
}

impl SqsEndpoint {
    /// Validates the URL. Endpoints from the environment or a profile are checked with each request.
    ///
    /// # Errors
    /// `Config` for an unencrypted URL on another host.
    pub fn check(&self) -> Result<(), Error> {
        match &self.url {
            Some(url) if !self.allow_plaintext && is_plaintext(url) => {
                Err(error::config("use the SQS endpoint", PlaintextEndpoint::WHAT))
            }
            _ => Ok(()),
        }
    }

    /// Builds a client. It connects with its first call.
    ///
    /// # Cancel safety
    /// A dropped call has no effect.
    pub async fn client(&self) -> Client {
        let tls = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let tls = limit_responses(tls);
        let timeouts = TimeoutConfig::builder().connect_timeout(Duration::from_secs(3)).build();
        let mut loader =
            aws_config::defaults(BehaviorVersion::latest()).http_client(tls).timeout_config(timeouts);
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(url) = &self.url {
            loader = loader.endpoint_url(url);
        }
        let config = aws_sdk_sqs::config::Builder::from(&loader.load().await);
        Client::from_conf(match self.allow_plaintext {
            true => config.build(),
            false => config.interceptor(RequireTls).build(),
        })
    }

    /// Checks, with a timeout of 4 s, that SQS responds and accepts the credentials. It does not check the rights to
    /// send: a refusal to list queues counts as a response, since sending needs no such right.
    ///
    /// # Errors
    /// `Config` without a region, `Denied` if SQS rejects the credentials, `Unavailable`, `Throttled` or `Timeout` if
    /// it does not respond.
    ///
    /// # Cancel safety
    /// A dropped call has no effect.
    pub async fn check_connection(&self) -> Result<(), Error> {
        const OPERATION: &str = "list SQS queues";
        let client = self.client().await;
        error::require_region(&client, OPERATION)?;
        let call = client.list_queues().max_results(1).send();
        match tokio::time::timeout(Duration::from_secs(4), call).await {
            Err(_) => Err(error::timeout(OPERATION)),
            Ok(Err(refused)) if refused.code().is_some_and(error::is_access_denied) => Ok(()),
            Ok(answer) => answer.map(drop).map_err(|error| error::classify(OPERATION, &error)),
        }
    }
}
