//! The options of a connection to a Kafka cluster, which all tables share.

use std::collections::BTreeMap;
use std::path::PathBuf;

use onceward::adapter::{host_of, is_local_host};
use onceward::{Error, ErrorKind};
use onceward_plugin::value::{Address, Credentials, Login};
use onceward_plugin::{Checked, Context, Exposure, check};

use super::properties::{KEY_FILES, Properties, normalised};
use crate::{KafkaConnection, TopicStatus};

/// Declares a table with the options of a cluster, before its own.
macro_rules! cluster_table {
    ($(#[$meta:meta])* $name:ident [$($shared:ident),*] { $($body:tt)* }) => {
        onceward_plugin::table! {
            $(#[$meta])*
            $name [credentials, $($shared),*] {
                /// The bootstrap brokers, each `host:port`.
                pub brokers: Vec<onceward_plugin::value::Address>,
                /// Properties passed to librdkafka as they are, such as `ssl.ca.location`. Those that would break the
                /// acknowledgement rule are refused.
                #[serde(default, skip_serializing_if = "crate::plugin::properties::Properties::is_empty")]
                pub properties: $crate::plugin::properties::Properties,
                /// Allows a login to another host without TLS, or with TLS that verifies no certificate. Only for trusted
                /// networks.
                #[serde(default)]
                pub allow_plaintext: bool,
                $($body)*
            }
        }

        impl $name {
            fn cluster(&self) -> $crate::plugin::cluster::ClusterOptions<'_> {
                $crate::plugin::cluster::ClusterOptions {
                    brokers: &self.brokers,
                    properties: &self.properties,
                    credentials: self.credentials(),
                    allow_plaintext: self.allow_plaintext,
                }
            }
        }

        impl onceward_plugin::Secrets for $name {
            fn exposure(&self) -> Option<onceward_plugin::Exposure> {
                self.cluster().exposure()
            }

            fn secret_files(&self, context: &onceward_plugin::Context<'_>) -> Vec<(String, std::path::PathBuf)> {
                self.cluster().secret_files(context)
            }
        }
    };
}
pub(super) use cluster_table;

/// The options of a cluster, whichever table they are in.
#[derive(Clone, Copy)]
pub(super) struct ClusterOptions<'a> {
    pub(super) brokers: &'a [Address],
    pub(super) properties: &'a Properties,
    pub(super) credentials: Credentials<'a>,
    pub(super) allow_plaintext: bool,
}

impl ClusterOptions<'_> {
    pub(super) fn check(&self, context: &Context<'_>) -> Checked {
        check::texts(context, "brokers", self.brokers, Address::is_empty)?;
        check::credentials(context, self.credentials, None)?;
        self.properties.check(context)
    }

    pub(super) fn secret_files(&self, context: &Context<'_>) -> Vec<(String, PathBuf)> {
        let keys = self.properties.expose().filter(|(name, _)| KEY_FILES.contains(&&*normalised(name)));
        let keys = keys.map(|(_, file)| (context.key("properties"), PathBuf::from(file)));
        self.credentials.secret_file(context).into_iter().chain(keys).collect()
    }

    pub(super) fn exposure(&self) -> Option<Exposure> {
        let (problem, fix) = self.exposed()?;
        Some(Exposure { option: "properties", problem, fix, is_allowed: self.allow_plaintext })
    }

    fn exposed(&self) -> Option<(&'static str, &'static str)> {
        // However a name is written, and however often.
        let any = |wanted: &str, is_wrong: &dyn Fn(&str) -> bool| {
            let mut all = self.properties.expose().filter(|(name, _)| normalised(name) == wanted);
            all.any(|(_, value)| is_wrong(&value.trim().to_ascii_lowercase()))
        };
        let is_open = |url: &str| {
            let url = Address::from(url.to_owned());
            !url.has_scheme(&["https"]) && check::is_on_another_host(&url)
        };
        if any("sasl.oauthbearer.token.endpoint.url", &is_open) {
            return Some((
                "has a token endpoint of http:// on another host, where the client's secret could be read on the way",
                "write https:// in sasl.oauthbearer.token.endpoint.url",
            ));
        }
        let brokers = self.brokers.iter().flat_map(|brokers| brokers.expose().split(','));
        let mut brokers = brokers.filter(|broker| !broker.trim().is_empty());
        if brokers.all(|broker| is_local_host(host_of(broker))) {
            return None;
        }
        if any("security.protocol", &|protocol| protocol == "sasl_plaintext") {
            return Some((
                "has the login sent without TLS to another host, where anybody on the way can read it, or guess the password from \
                 what is sent",
                r#"write security.protocol = "sasl_ssl""#,
            ));
        }
        let has_password = self.credentials.password.is_some() || self.credentials.password_file.is_some();
        let is_written = any("security.protocol", &|_| true);
        let is_tls =
            any("security.protocol", &|protocol| protocol.ends_with("ssl")) || (has_password && !is_written);
        let is_blind = any("enable.ssl.certificate.verification", &|on| !matches!(on, "true" | "t" | "1"))
            || any("ssl.endpoint.identification.algorithm", &|algorithm| algorithm != "https");
        (is_tls && is_blind).then_some((
            "turns off the verification of brokers on another host, so that anybody on the way could answer in their place",
            "remove enable.ssl.certificate.verification and ssl.endpoint.identification.algorithm, and name the brokers' authority \
             in ssl.ca.location",
        ))
    }

    /// Returns the connection to the cluster, with the credentials.
    pub(super) fn connection(&self, context: &Context<'_>) -> Result<KafkaConnection, Error> {
        let mut connection = KafkaConnection::new(self.brokers.iter().map(Address::expose));
        connection.allow_plaintext = self.allow_plaintext;
        connection.password_file = self.credentials.password_file.map(|file| context.resolve(file));
        connection.properties = client_properties(self.properties, Login::read(context, self.credentials)?);
        Ok(connection)
    }

    /// The bootstrap brokers, each in a form that is equal for equal brokers.
    pub(super) fn servers(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| broker.expose().to_owned()).collect()
    }
}

/// The client's properties, with the credentials.
fn client_properties(given: &Properties, login: Login) -> BTreeMap<String, String> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let mut properties: BTreeMap<_, _> = given.expose().map(owned).collect();
    if let Some(username) = login.username {
        properties.insert("sasl.username".to_owned(), username);
    }
    if let Some(password) = login.password {
        properties.insert("sasl.password".to_owned(), password.expose().to_owned());
        // The safe choice with a password, unless the properties say otherwise.
        properties.entry("security.protocol".to_owned()).or_insert_with(|| "sasl_ssl".to_owned());
        if !properties.contains_key("sasl.mechanism") {
            properties.entry("sasl.mechanisms".to_owned()).or_insert_with(|| "PLAIN".to_owned());
        }
    }
    properties
}

/// Inspects a topic that messages are written to.
///
/// # Errors
/// The topic does not exist, or this user may not write to it.
pub(super) async fn inspect_writable(
    connection: &KafkaConnection,
    topic: &str,
) -> Result<TopicStatus, Error> {
    let status = connection.inspect_topic(topic).await?;
    if status.writable {
        return Ok(status);
    }
    let what = "this user may not write to it; grant Write";
    Err(Error::new(ErrorKind::Denied, format!("inspect topic {topic}"), what))
}
