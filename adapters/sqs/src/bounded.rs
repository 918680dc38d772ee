//! An HTTP client whose answers have an end: [`bounded`]. The SDK reads an answer whole, however long it is.

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::{RuntimeComponents, RuntimeComponentsBuilder};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use http_body_util::Limited;

/// The longest answer. Ten messages of 1 MiB, with each character written as two, are less.
const LONGEST_ANSWER: usize = 32 << 20;

/// `client`, with answers of at most 32 MiB: longer ones are errors.
pub(crate) fn bounded(client: SharedHttpClient) -> SharedHttpClient {
    SharedHttpClient::new(Bounded(client))
}

#[derive(Debug)]
struct Bounded<T>(T);

impl HttpClient for Bounded<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Bounded(self.0.http_connector(settings, components)))
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.validate_base_client_config(components, config)
    }

    fn validate_final_config(
        &self,
        components: &RuntimeComponents,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.validate_final_config(components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.0.connector_metadata()
    }
}

impl HttpConnector for Bounded<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let answer = self.0.call(request);
        HttpConnectorFuture::new(async {
            let mut answer = answer.await?;
            let body = answer.take_body();
            *answer.body_mut() = SdkBody::from_body_1_x(Limited::new(body, LONGEST_ANSWER));
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use aws_credential_types::Credentials;
    use aws_sdk_sqs::config::retry::RetryConfig;
    use aws_sdk_sqs::config::{BehaviorVersion, Region};
    use aws_sdk_sqs::{Client, Config};
    use onceward_test_servers::lying::http;
    use onceward_test_servers::process::peak_memory;

    use super::*;

    /// Some answers of the greatest length.
    const MOST_MEMORY: u64 = 400 << 20;

    fn client(port: u16) -> Client {
        let credentials = Credentials::new("id", "secret", None, None, "test");
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("r"))
            .endpoint_url(format!("http://127.0.0.1:{port}"))
            .credentials_provider(credentials)
            .retry_config(RetryConfig::disabled())
            .http_client(bounded(aws_smithy_http_client::Builder::new().build_http()));
        Client::from_conf(config.build())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn answers_without_an_end_are_errors() {
        for (first, again) in [
            ("HTTP/1.1 200 OK\r\n\r\n", "{\"Messages\":[ ".to_owned()),
            ("HTTP/1.1 500 Oops\r\nContent-Length: 99999999999\r\n\r\n", "x".to_owned()),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                format!("1000\r\n{}\r\n", "x".repeat(0x1000)),
            ),
            ("HTTP/1.1 200 OK\r\n", "X-Header: y\r\n".to_owned()),
        ] {
            let liar = http::start(first, again);
            let answer = client(liar.port()).receive_message().queue_url("http://q/1/q").send().await;
            assert!(answer.is_err(), "{first:?} was believed");
            let peak = peak_memory("self").unwrap();
            assert!(peak < MOST_MEMORY, "{first:?}: {peak} bytes");
        }
    }
}
