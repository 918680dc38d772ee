//! The connection of clients to a cluster, and their authentication: [`KafkaConnection`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use onceward::Error;
use rdkafka::ClientConfig;

use crate::auth::password::PasswordFile;
use crate::auth::plaintext;
use crate::error;

const OPERATION: &str = "connect to Kafka";

/// How clients connect to a cluster, and how they authenticate.
///
/// ```
/// # use onceward_kafka::KafkaConnection;
/// let mut connection = KafkaConnection::new(["kafka.example:9092"]);
/// connection.properties.insert("security.protocol".into(), "ssl".into());
/// assert!(connection.check().is_ok());
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KafkaConnection {
    /// Bootstrap addresses, as `host:port`.
    pub brokers: Vec<String>,
    /// More properties of librdkafka. Properties that contradict the guarantees are rejected.
    pub properties: BTreeMap<String, String>,
    /// Allows a login to be sent to other hosts without TLS (`sasl_plaintext`), or without verifying the broker, so that anyone on
    /// the network path can read it. For trusted networks only; default false.
    pub allow_plaintext: bool,
    /// The file with the password of `sasl.username`. It is read every 2 s: a changed password is used for new connections. It takes
    /// precedence over `sasl.password`. A trailing line end is ignored.
    pub password_file: Option<PathBuf>,
}

impl KafkaConnection {
    /// Creates a connection to the cluster of `brokers`, with the defaults.
    pub fn new<B: Into<String>>(brokers: impl IntoIterator<Item = B>) -> Self {
        Self { brokers: brokers.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Checks the values, and that a login is sent over verified TLS only. Reads the password file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), naming the problem and the fix.
    pub fn check(&self) -> Result<(), Error> {
        if self.brokers.is_empty() {
            return Err(error::config_error(OPERATION, "set at least one broker, as host:port"));
        }
        for name in ["bootstrap.servers", "metadata.broker.list", "group.id"] {
            if self.properties.contains_key(name) {
                let what = format!("the property {name} has its own setting (brokers, group); remove it");
                return Err(error::config_error(OPERATION, what));
            }
        }
        if !self.allow_plaintext {
            plaintext::check(OPERATION, &self.brokers, &self.properties)?;
        }
        self.password().map_or(Ok(()), |file| file.read().map(drop))
    }

    /// Returns the client's configuration with the current password. [`check`](Self::check) reports an unreadable password file.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers.join(","));
        for (name, value) in &self.properties {
            client.set(name, value);
        }
        if let Some(Ok(password)) = self.password().map(|file| file.read()) {
            client.set("sasl.password", password);
        }
        client
    }

    /// Returns the file with the password, if one is set.
    pub(crate) fn password(&self) -> Option<Arc<PasswordFile>> {
        let username = self.properties.get("sasl.username").cloned().unwrap_or_default();
        self.password_file.clone().map(|path| Arc::new(PasswordFile { path, username }))
    }
}

impl fmt::Debug for KafkaConnection {
    /// Formats properties by name only: their values include passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConnection")
            .field("brokers", &self.brokers)
            .field("properties", &self.properties.keys())
            .field("allow_plaintext", &self.allow_plaintext)
            .field("password_file", &self.password_file)
            .finish()
    }
}
