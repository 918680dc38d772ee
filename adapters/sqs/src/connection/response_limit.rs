//! An HTTP client with a response size limit, since the SDK reads responses into memory without one:
//! [`limit_responses`].

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

/// The largest response in bytes. Ten messages of 1 MiB, with each character escaped as two, are smaller.
const MAX_RESPONSE_BYTES: usize = 32 << 20;

/// Limits the responses of `client` to 32 MiB: larger ones are errors.
pub(crate) fn limit_responses(client: SharedHttpClient) -> SharedHttpClient {
    SharedHttpClient::new(LimitedClient(client))
}

#[derive(Debug)]
struct LimitedClient<T>(T);

impl HttpClient for LimitedClient<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(LimitedClient(self.0.http_connector(settings, components)))
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

impl HttpConnector for LimitedClient<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let response = self.0.call(request);
        HttpConnectorFuture::new(async {
            let mut response = response.await?;
            let body = response.take_body();
            *response.body_mut() = SdkBody::from_body_1_x(Limited::new(body, MAX_RESPONSE_BYTES));
            Ok(response)
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

    /// The size of several responses at the limit.
    const MOST_MEMORY: u64 = 400 << 20;

    fn client(port: u16) -> Client {
        let credentials = Credentials::new("id", "secret", None, None, "test");
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("r"))
            .endpoint_url(format!("http://127.0.0.1:{port}"))
            .credentials_provider(credentials)
            .retry_config(RetryConfig::disabled())
            .http_client(limit_responses(aws_smithy_http_client::Builder::new().build_http()));
        Client::from_conf(config.build())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn unbounded_responses_are_errors() {
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
            let response = client(liar.port()).receive_message().queue_url("http://q/1/q").send().await;
            assert!(response.is_err(), "{first:?} was accepted");
            let peak = peak_memory("self").unwrap();
            assert!(peak < MOST_MEMORY, "{first:?}: {peak} bytes");
        }
    }
}
