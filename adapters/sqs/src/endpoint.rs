//! Where SQS is, and a client for it: [`Endpoint`].

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use onceward::Error;

use crate::bounded::bounded;
use crate::encrypted::{OnlyEncrypted, OpenEndpoint, is_open};
use crate::error;

/// Where SQS is. Credentials come from the standard chain: environment, profile, web identity, container, instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The region; by default that of the standard chain.
    pub region: Option<String>,
    /// The URL of an emulator or a private endpoint; by default the region's own.
    pub url: Option<String>,
    /// Sends requests also to an endpoint of `http://` on another host. Whoever reads such a request can repeat it for a quarter
    /// of an hour. Refused unless true: for networks where nobody else can be.
    pub allow_plaintext: bool,
}

impl Endpoint {
    /// Checks that the URL can be used. What the environment and a profile say is looked at with each request.
    ///
    /// # Errors
    /// `Config` for one that is not encrypted, on another host.
    pub fn check(&self) -> Result<(), Error> {
        match &self.url {
            Some(url) if !self.allow_plaintext && is_open(url) => {
                Err(error::config("use the SQS endpoint", OpenEndpoint::WHAT))
            }
            _ => Ok(()),
        }
    }

    /// A client. It is not connected before its first call.
    ///
    /// # Cancel safety
    /// A dropped call leaves nothing behind.
    pub async fn client(&self) -> Client {
        let tls = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let tls = bounded(tls);
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
            false => config.interceptor(OnlyEncrypted).build(),
        })
    }

    /// Asks SQS for a word, for 4 s at most: whether it can be reached and knows the credentials. Which queues they may send to
    /// it does not say; a refusal to list queues is an answer like any other, since sending needs no such right.
    ///
    /// # Errors
    /// `Config` without a region, `Denied` if SQS does not know the credentials, `Unavailable`, `Throttled` or `Timeout` if it
    /// does not answer.
    ///
    /// # Cancel safety
    /// A dropped call leaves nothing behind.
    pub async fn answers(&self) -> Result<(), Error> {
        const ASK: &str = "ask SQS for its queues";
        let client = self.client().await;
        error::needs_region(&client, ASK)?;
        let call = client.list_queues().max_results(1).send();
        match tokio::time::timeout(Duration::from_secs(4), call).await {
            Err(_) => Err(error::timeout(ASK)),
            Ok(Err(refused)) if refused.code().is_some_and(error::is_without_right) => Ok(()),
            Ok(answer) => answer.map(drop).map_err(|error| error::sdk(ASK, &error)),
        }
    }
}
