//! Where SQS is, and a client for it: [`Endpoint`].

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

/// Where SQS is. Credentials come from the standard chain: environment, profile, web identity, container, instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The region; by default that of the standard chain.
    pub region: Option<String>,
    /// The URL of an emulator or a private endpoint; by default the region's own.
    pub url: Option<String>,
}

impl Endpoint {
    /// A client. It is not connected before its first call.
    ///
    /// # Cancel safety
    /// A dropped call leaves nothing behind.
    pub async fn client(&self) -> Client {
        let tls = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts = TimeoutConfig::builder().connect_timeout(Duration::from_secs(3)).build();
        let mut loader =
            aws_config::defaults(BehaviorVersion::latest()).http_client(tls).timeout_config(timeouts);
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(url) = &self.url {
            loader = loader.endpoint_url(url);
        }
        Client::new(&loader.load().await)
    }
}
