//! Address of Pub/Sub, credentials, and clients for it: [`PubsubEndpoint`].

use std::path::PathBuf;
use std::time::Duration;

use google_cloud_auth::credentials::{Credentials, anonymous, service_account};
use google_cloud_gax::retry_policy::RetryPolicyExt;
#[cfg(feature = "plugin")]
use google_cloud_iam_v1::client::IAMPolicy;
#[cfg(feature = "plugin")]
use google_cloud_pubsub::client::TopicAdmin;
use google_cloud_pubsub::client::{BasePublisher, Subscriber, SubscriptionAdmin};
use google_cloud_pubsub::retry_policy::RetryableErrors;
use onceward::Error;
use onceward::adapter::is_local_host;
use url::Url;

use crate::error;

/// Google's address.
const GOOGLE: &str = "https://pubsub.googleapis.com";
/// The variable that Google's client libraries read the address of an emulator from.
const EMULATOR_HOST: &str = "PUBSUB_EMULATOR_HOST";
/// How long the client library repeats a publish. The library goes on when the caller has given up, so that this
/// bounds how late a copy can arrive.
const PUBLISH_LIMIT: Duration = Duration::from_secs(10);

/// The credentials that requests carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PubsubCredentials {
    /// Application Default Credentials: the file in `GOOGLE_APPLICATION_CREDENTIALS`, those of `gcloud`, or the metadata
    /// server of the machine.
    #[default]
    ApplicationDefault,
    /// None, as emulators expect it.
    Anonymous,
    /// A service account's key in a JSON file, read when a client is built.
    KeyFile(PathBuf),
}

/// Address of Pub/Sub, and credentials.
///
/// Without a URL, the environment variable `PUBSUB_EMULATOR_HOST` (`HOST:PORT`) is honoured as in Google's other client
/// libraries: requests go to that host over `http://` without credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PubsubEndpoint {
    /// The project of short names; default: none, so that names must be full.
    pub project: Option<String>,
    /// The URL of an emulator, or of a regional or private endpoint; default: Google's.
    pub url: Option<String>,
    /// The credentials.
    pub credentials: PubsubCredentials,
    /// Allows `http://` to another host, where tokens and messages can be read on the network path. Default false:
    /// refused.
    pub allow_plaintext: bool,
}

impl PubsubEndpoint {
    /// Validates the URL, or the address in `PUBSUB_EMULATOR_HOST`.
    ///
    /// # Errors
    /// `Config` for an invalid URL, or an unencrypted one on another host.
    pub fn check(&self) -> Result<(), Error> {
        self.resolved().map(drop)
    }

    /// Builds a client to receive with. It connects with its first call.
    ///
    /// Like the other clients of this type, it installs rustls's ring provider for this process if none is installed.
    ///
    /// # Errors
    /// `Config` for an invalid endpoint, `Denied` without usable credentials.
    ///
    /// # Cancel safety
    /// A dropped call has no effect.
    pub async fn subscriber(&self) -> Result<Subscriber, Error> {
        let Resolved { url, credentials } = self.resolved()?.with_provider();
        let mut builder = Subscriber::builder().with_endpoint(url);
        if let Some(credentials) = self.build(&credentials)? {
            builder = builder.with_credentials(credentials);
        }
        builder.build().await.map_err(|error| error::client("build a Pub/Sub subscriber", &error))
    }

    /// Builds a client to publish with. It connects with its first call.
    ///
    /// # Errors
    /// As [`subscriber`](Self::subscriber).
    ///
    /// # Cancel safety
    /// A dropped call has no effect.
    pub async fn publisher(&self) -> Result<BasePublisher, Error> {
        let Resolved { url, credentials } = self.resolved()?.with_provider();
        let mut builder = BasePublisher::builder()
            .with_endpoint(url)
            .with_retry_policy(RetryableErrors.with_time_limit(PUBLISH_LIMIT));
        if let Some(credentials) = self.build(&credentials)? {
            builder = builder.with_credentials(credentials);
        }
        builder.build().await.map_err(|error| error::client("build a Pub/Sub publisher", &error))
    }

    /// Builds a client that reads subscriptions. Google's crate sends these requests as JSON over HTTP.
    pub(crate) async fn subscription_admin(&self) -> Result<SubscriptionAdmin, Error> {
        let Resolved { url, credentials } = self.resolved()?.with_provider();
        let mut builder = SubscriptionAdmin::builder().with_endpoint(url);
        if let Some(credentials) = self.build(&credentials)? {
            builder = builder.with_credentials(credentials);
        }
        builder.build().await.map_err(|error| error::client("build a Pub/Sub client", &error))
    }

    /// As [`subscription_admin`](Self::subscription_admin), for topics.
    #[cfg(feature = "plugin")]
    pub(crate) async fn topic_admin(&self) -> Result<TopicAdmin, Error> {
        let Resolved { url, credentials } = self.resolved()?.with_provider();
        let mut builder = TopicAdmin::builder().with_endpoint(url);
        if let Some(credentials) = self.build(&credentials)? {
            builder = builder.with_credentials(credentials);
        }
        builder.build().await.map_err(|error| error::client("build a Pub/Sub client", &error))
    }

    /// As [`subscription_admin`](Self::subscription_admin), for permissions.
    #[cfg(feature = "plugin")]
    pub(crate) async fn permissions(&self) -> Result<IAMPolicy, Error> {
        let Resolved { url, credentials } = self.resolved()?.with_provider();
        let mut builder = IAMPolicy::builder().with_endpoint(url);
        if let Some(credentials) = self.build(&credentials)? {
            builder = builder.with_credentials(credentials);
        }
        builder.build().await.map_err(|error| error::client("build a Pub/Sub client", &error))
    }

    /// The address that requests go to.
    pub(crate) fn address(&self) -> Result<String, Error> {
        self.resolved().map(|resolved| resolved.url)
    }

    /// True if requests go to Google.
    pub(crate) fn is_google(&self) -> bool {
        self.resolved().is_ok_and(|resolved| resolved.url == GOOGLE)
    }

    fn resolved(&self) -> Result<Resolved, Error> {
        let emulator = std::env::var(EMULATOR_HOST).ok();
        self.resolve(emulator.as_deref().map(str::trim).filter(|host| !host.is_empty()))
    }

    fn resolve(&self, emulator: Option<&str>) -> Result<Resolved, Error> {
        let (url, credentials) = match (&self.url, emulator) {
            (Some(url), _) => (url.clone(), self.credentials.clone()),
            (None, Some(host)) if host.contains("://") => (host.to_owned(), PubsubCredentials::Anonymous),
            (None, Some(host)) => (format!("http://{host}"), PubsubCredentials::Anonymous),
            (None, None) => (GOOGLE.to_owned(), self.credentials.clone()),
        };
        let invalid = |what: &'static str| Err(error::config("use the Pub/Sub endpoint", what));
        let parsed = match Url::parse(&url) {
            Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => parsed,
            _ => {
                return invalid(
                    "the endpoint (from the configuration or PUBSUB_EMULATOR_HOST) is not an http:// or https:// URL; write \
                     scheme, host and port",
                );
            }
        };
        let is_open = parsed.scheme() != "https" && !parsed.host_str().is_some_and(is_local_host);
        if is_open && !self.allow_plaintext {
            return invalid(
                "the endpoint (from the configuration or PUBSUB_EMULATOR_HOST) is http:// on another host: tokens and messages \
                 could be read on the network path; write https://, or set allow_plaintext on a private network",
            );
        }
        Ok(Resolved { url, credentials })
    }

    /// `None`: the client library finds them itself.
    fn build(&self, credentials: &PubsubCredentials) -> Result<Option<Credentials>, Error> {
        match credentials {
            PubsubCredentials::ApplicationDefault => Ok(None),
            PubsubCredentials::Anonymous => Ok(Some(anonymous::Builder::new().build())),
            PubsubCredentials::KeyFile(path) => {
                let operation = || format!("read the service account key in {}", path.display());
                let text = std::fs::read(path).map_err(|error| {
                    error::config(operation(), "it cannot be read; make it readable for this user")
                        .with_source(error)
                })?;
                // The cause names a position only, and nothing of the key.
                let key = serde_json::from_slice(&text).map_err(|error| {
                    error::config(operation(), "it is not JSON; download the key again as JSON")
                        .with_source(error)
                })?;
                let built = service_account::Builder::new(key).build();
                built.map(Some).map_err(|_| {
                    error::config(operation(), "it is not a service account's key; download it again as JSON")
                })
            }
        }
    }
}

/// Where requests go, and with what, after the environment was asked.
#[derive(Debug)]
struct Resolved {
    url: String,
    credentials: PubsubCredentials,
}

impl Resolved {
    /// Without a provider, the client library panics when it builds a TLS client; the program has installed it already.
    fn with_provider(self) -> Self {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Another thread may be faster; either is fine.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(url: &str) -> PubsubEndpoint {
        PubsubEndpoint { url: Some(url.to_owned()), ..PubsubEndpoint::default() }
    }

    #[test]
    fn other_hosts_require_tls() {
        for open in ["http://pubsub.example/", "http://10.0.0.1:8085", "http://localhost@evil.example/"] {
            assert!(at(open).resolve(None).is_err(), "{open}");
            assert!(PubsubEndpoint { allow_plaintext: true, ..at(open) }.resolve(None).is_ok(), "{open}");
        }
        for fine in ["https://europe-west1-pubsub.googleapis.com", "http://127.0.0.1:8085", "http://[::1]:1/"]
        {
            assert!(at(fine).resolve(None).is_ok(), "{fine}");
        }
        for wrong in ["", "localhost:8085", "ftp://localhost/"] {
            assert!(at(wrong).resolve(None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_emulator_in_the_environment_is_used_without_credentials_unless_there_is_a_url() {
        let of = |endpoint: &PubsubEndpoint, host| {
            endpoint.resolve(Some(host)).map(|resolved| (resolved.url, resolved.credentials))
        };
        let anonymous = PubsubCredentials::Anonymous;
        let default = PubsubEndpoint::default();
        assert_eq!(
            of(&default, "localhost:8085").unwrap(),
            ("http://localhost:8085".into(), anonymous.clone())
        );
        assert_eq!(of(&default, "http://[::1]:8085").unwrap(), ("http://[::1]:8085".into(), anonymous));
        assert!(of(&default, "emulator.example:8085").is_err());
        let (url, credentials) = of(&at("https://private.example"), "localhost:8085").unwrap();
        assert_eq!((&*url, credentials), ("https://private.example", PubsubCredentials::ApplicationDefault));
        assert_eq!(default.resolve(None).unwrap().url, GOOGLE);
    }
}
