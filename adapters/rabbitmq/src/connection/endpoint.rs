//! Address of a broker, credentials and connection limits: [`RabbitmqEndpoint`].

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use onceward::Error;
use onceward::adapter::is_local_host;
use url::{Host, Url};

use crate::error;
use crate::sanitize::frame_order::MIN_FRAME_MAX;

const OPERATION: &str = "use the RabbitMQ URL";
/// The query parameters that a URL may have.
const PARAMETERS: [&str; 5] =
    ["heartbeat", "connection_timeout", "channel_max", "frame_max", "auth_mechanism"];

/// The default `frame_max` in bytes, which is RabbitMQ's own. The buffers of a connection are 64 times as large.
pub(crate) const DEFAULT_FRAME_MAX: u32 = 131_072;
/// The largest `frame_max` that may be configured.
const MAX_FRAME_MAX: u32 = 1 << 20;

/// Address and credentials of a RabbitMQ broker, and connection limits.
///
/// `Debug` shows neither user nor password.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RabbitmqEndpoint {
    /// `amqp://user:password@host:5672/virtual-host`, or `amqps://…:5671/…` for TLS. The virtual host `/` is written
    /// `%2f`.
    ///
    /// Query parameters: `heartbeat` (seconds) and `auth_mechanism` (`plain`, `external`) override the fields of this
    /// struct; `frame_max` is the largest frame in bytes, 4,096 to 1,048,576, default 131,072, lowered to the broker's
    /// own. A message with headers larger than a frame is delivered without them, as malformed.
    pub url: String,
    /// A file with the password, read for each new connection, so that it can be rotated while the program runs.
    /// Overrides a password in the URL. A trailing line end is ignored.
    pub password_file: Option<PathBuf>,
    /// A PEM file with the certificate authorities that may have signed the broker's certificate. `None`: the
    /// authorities that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Allows user and password over `amqp://` to another host, where anybody on the network path can read them.
    /// Default false: refused.
    pub allow_plaintext: bool,
    /// The heartbeat interval; a connection that is silent for twice this long is closed. Whole seconds, 1 s to 1 h;
    /// default 10 s.
    pub heartbeat: Duration,
    /// The timeout for connecting, all steps included. More than 0; default 10 s.
    pub connect_timeout: Duration,
}

impl RabbitmqEndpoint {
    /// The broker at `url`, with default options.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            password_file: None,
            ca_file: None,
            allow_plaintext: false,
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// Validates the values and their combination.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), with the fix; never with the URL in it.
    pub fn check(&self) -> Result<(), Error> {
        self.uri().map(|_| ())
    }

    /// The URI with the current password.
    pub(crate) async fn current_uri(&self) -> Result<AMQPUri, Error> {
        let mut uri = self.uri()?;
        if let Some(path) = self.password_file.clone() {
            let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
            let text = read.map_err(std::io::Error::other).and_then(|read| read).map_err(|error| {
                let what = format!(
                    "the file cannot be read ({}); it must be a text file readable by this user",
                    error.kind()
                );
                error::config("read the file with the RabbitMQ password", what)
            })?;
            uri.authority.userinfo.password = text.trim_end_matches(['\r', '\n']).to_owned();
        }
        Ok(uri)
    }

    pub(crate) fn uri(&self) -> Result<AMQPUri, Error> {
        let wrong = |what: &'static str| Err(error::config(OPERATION, what));
        let Ok(url) = Url::parse(&self.url) else {
            return wrong(
                "it is not a valid URL; write amqp://user:password@host:5672/%2f, with reserved characters percent-encoded",
            );
        };
        if !matches!(url.scheme(), "amqp" | "amqps") {
            return wrong("its scheme must be amqp or amqps");
        }
        // The name is not shown: behind an unencoded `?` in a password, it is a part of the password.
        if url.query_pairs().any(|(name, _)| !PARAMETERS.contains(&&*name)) {
            let known = PARAMETERS.join(", ");
            return Err(error::config(OPERATION, format!("unknown parameter; the known ones are {known}")));
        }
        let Ok(mut uri) = self.url.parse::<AMQPUri>() else {
            return wrong("a parameter is not a number, or user, password or virtual host is not UTF-8");
        };
        // The library ignores an address in brackets and connects to localhost.
        match url.host() {
            Some(Host::Ipv6(address)) => uri.authority.host = address.to_string(),
            Some(_) => {}
            None => return wrong("it contains no host"),
        }
        if self.ca_file.is_some() && uri.scheme == AMQPScheme::AMQP {
            return wrong("a CA file is set, but the scheme is amqp, which is not encrypted; write amqps");
        }
        let sends_login =
            !url.username().is_empty() || url.password().is_some() || self.password_file.is_some();
        let is_exposed = uri.scheme == AMQPScheme::AMQP && !is_local_host(&uri.authority.host);
        if sends_login && is_exposed && !self.allow_plaintext {
            return wrong(
                "user and password would be sent over amqp:// to another host, readable on the network path; write amqps://, \
                 or set allow_plaintext on a private network",
            );
        }
        let seconds = self.heartbeat.as_secs();
        if self.heartbeat.subsec_nanos() != 0 || !(1..=3600).contains(&seconds) {
            return wrong("the heartbeat must be 1 s to 1 h, in whole seconds");
        }
        match uri.query.heartbeat {
            Some(0) => {
                return wrong(
                    "heartbeat=0 would leave dead connections undetected; set seconds, or remove the parameter",
                );
            }
            Some(_) => {}
            None => uri.query.heartbeat = u16::try_from(seconds).ok(),
        }
        let least = MIN_FRAME_MAX;
        match uri.query.frame_max {
            Some(bytes) if !(least..=MAX_FRAME_MAX).contains(&bytes) => {
                return Err(error::config(
                    OPERATION,
                    format!(
                        "frame_max is out of range; set {least} to {MAX_FRAME_MAX} bytes, or remove the parameter"
                    ),
                ));
            }
            Some(_) => {}
            // Without a value the broker's would be used, and "no limit" would size the buffers.
            None => uri.query.frame_max = Some(DEFAULT_FRAME_MAX),
        }
        if self.connect_timeout.is_zero() {
            return wrong("the connect timeout must be more than 0");
        }
        Ok(uri)
    }
}

impl fmt::Debug for RabbitmqEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.uri() {
            Ok(uri) => format!("{}://{}:{}", uri.scheme, uri.authority.host, uri.authority.port),
            Err(_) => "invalid".to_owned(),
        };
        f.debug_struct("RabbitmqEndpoint")
            .field("url", &place)
            .field("password_file", &self.password_file)
            .field("ca_file", &self.ca_file)
            .field("allow_plaintext", &self.allow_plaintext)
            .field("heartbeat", &self.heartbeat)
            .field("connect_timeout", &self.connect_timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(url: &str) -> AMQPUri {
        RabbitmqEndpoint { allow_plaintext: true, ..RabbitmqEndpoint::new(url) }.uri().unwrap()
    }

    #[test]
    fn hosts_of_every_kind_are_parsed() {
        for (url, host, port) in [
            ("amqp://rabbit.example", "rabbit.example", 5672),
            ("amqps://rabbit.example/%2f", "rabbit.example", 5671),
            ("amqp://10.0.0.7:1234/", "10.0.0.7", 1234),
            ("amqp://u:p@[2001:db8::7]:5673/v", "2001:db8::7", 5673),
        ] {
            let uri = uri(url);
            assert_eq!((&uri.authority.host[..], uri.authority.port), (host, port));
        }
        assert_eq!(uri("amqp://u:p%40ss@h/a%2fb").authority.userinfo.password, "p@ss");
        assert_eq!(uri("amqp://h/a%2fb").vhost, "a/b");
    }

    #[test]
    fn the_heartbeat_is_always_on() {
        assert_eq!(uri("amqp://h").query.heartbeat, Some(10));
        assert_eq!(uri("amqp://h?heartbeat=3").query.heartbeat, Some(3));
        assert!(RabbitmqEndpoint::new("amqp://h?heartbeat=0").check().is_err());
        for heartbeat in [Duration::ZERO, Duration::from_millis(1500), Duration::from_secs(3601)] {
            let endpoint = RabbitmqEndpoint { heartbeat, ..RabbitmqEndpoint::new("amqp://h") };
            assert!(endpoint.check().is_err());
        }
    }

    #[test]
    fn frames_are_always_limited() {
        assert_eq!(uri("amqp://h").query.frame_max, Some(131_072));
        for bytes in [4096, 8192, 1_048_576] {
            assert_eq!(uri(&format!("amqp://h?frame_max={bytes}")).query.frame_max, Some(bytes));
        }
        for bytes in [0, 1, 4095, 1_048_577, u32::MAX] {
            let refused = RabbitmqEndpoint::new(format!("amqp://h?frame_max={bytes}")).check().unwrap_err();
            assert!(refused.to_string().contains("4096 to 1048576"), "{refused}");
        }
    }

    #[test]
    fn a_login_without_tls_is_sent_to_this_host_only() {
        for url in [
            "amqp://u:p@rabbit.example",
            "amqp://u@10.0.0.7/",
            "amqp://u:p@localhost.evil.example/v",
            "amqp://u:p@[2001:db8::7]",
            "amqp://:p@h",
        ] {
            let mut endpoint = RabbitmqEndpoint::new(url);
            assert!(endpoint.check().unwrap_err().to_string().contains("write amqps"), "{url}");
            endpoint.allow_plaintext = true;
            endpoint.check().unwrap();
        }
        let mut file = RabbitmqEndpoint::new("amqp://rabbit.example");
        file.check().unwrap();
        file.password_file = Some("p".into());
        assert!(file.check().is_err());
        for url in
            ["amqps://u:p@rabbit.example", "amqp://u:p@localhost", "amqp://u:p@127.0.0.1", "amqp://u:p@[::1]"]
        {
            RabbitmqEndpoint::new(url).check().unwrap();
        }
    }

    #[test]
    fn invalid_urls_are_refused_and_no_secret_is_shown() {
        for (url, what) in [
            ("mallory:hunter2@host", "scheme"),
            ("//mallory:hunter2@host", "not a valid URL"),
            ("http://mallory:hunter2@host", "scheme"),
            ("amqp://mallory:hunter2@host?verify=none", "unknown parameter"),
            ("amqp://mallory:hunter2@host?heartbeat=hunter2", "not a number"),
            ("amqp://mallory:hunter2%ff@host", "not UTF-8"),
            ("amqp:///hunter2", "no host"),
            ("amqp://mallory:12?hunter2@host", "unknown parameter"),
        ] {
            let endpoint = RabbitmqEndpoint::new(url);
            let said = format!("{:?} {endpoint:?}", endpoint.check().unwrap_err());
            assert!(said.contains(what), "{url}: {said}");
            assert!(!said.contains("hunter2") && !said.contains("mallory"), "{said}");
        }
        let plain = RabbitmqEndpoint {
            ca_file: Some("ca.pem".into()),
            ..RabbitmqEndpoint::new("amqp://u:hunter2@h")
        };
        assert!(plain.check().unwrap_err().to_string().contains("write amqps"));
        let shown = format!(
            "{:?}",
            RabbitmqEndpoint::new("amqps://mallory:hunter2@rabbit.example/secret?heartbeat=5")
        );
        assert!(
            shown.contains("amqps://rabbit.example:5671")
                && !shown.contains("mallory")
                && !shown.contains("hunter2")
        );
    }
}
