//! Where the broker is and how to get there: [`Endpoint`].

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use onceward::{Error, is_local_host};
use url::{Host, Url};

use crate::error;
use crate::sequence::LEAST_FRAME_MAX;

const OPERATION: &str = "use the RabbitMQ URL";
/// What may follow the `?` of a URL.
const PARAMETERS: [&str; 5] =
    ["heartbeat", "connection_timeout", "channel_max", "frame_max", "auth_mechanism"];

/// The longest frame that is asked for, in bytes; RabbitMQ's own default. Each connection has buffers of 64 times this.
pub(crate) const DEFAULT_FRAME_MAX: u32 = 131_072;
/// The longest that may be asked for.
const GREATEST_FRAME_MAX: u32 = 1 << 20;

/// A RabbitMQ broker: its address, the credentials for it, and how long to wait for it.
///
/// `Debug` shows neither user nor password.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// `amqp://user:password@host:5672/virtual-host`, or `amqps://…:5671/…` for TLS. The virtual host `/` is written
    /// `%2f`. After a `?` may come `heartbeat` (seconds) and `auth_mechanism` (`plain`, `external`), which win over what
    /// is said here, and `frame_max`, the longest frame in bytes: 4,096 to 1,048,576, default 131,072. The broker's own
    /// `frame_max` counts if it is less. A message whose headers are longer than a frame is taken without them, as malformed.
    pub url: String,
    /// The password, in a file that is read for each new connection: it may change while we run. It wins over one in the URL.
    /// A line end after it does not count.
    pub password_file: Option<PathBuf>,
    /// The certificates, PEM, of the authorities that may have signed the broker's. `None`: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Sends user and password also over `amqp://` to another host, where anybody on the way can read them. Refused unless
    /// true: for networks where nobody else can be.
    pub allow_plaintext: bool,
    /// A connection on which nothing comes for twice this long is dead. Whole seconds, 1 s to 1 h; default 10 s.
    pub heartbeat: Duration,
    /// How long connecting may take, all steps together. Default 10 s.
    pub connect_timeout: Duration,
}

impl Endpoint {
    /// The broker at `url`, with the defaults.
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

    /// Checks that the values can be used and go together.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config), saying what to change; never with the URL in it.
    pub fn check(&self) -> Result<(), Error> {
        self.uri().map(|_| ())
    }

    /// The URI with the password as it is now.
    pub(crate) async fn current_uri(&self) -> Result<AMQPUri, Error> {
        let mut uri = self.uri()?;
        if let Some(path) = self.password_file.clone() {
            let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
            let text = read.map_err(std::io::Error::other).and_then(|read| read).map_err(|error| {
                let what = format!(
                    "it cannot be read ({}); make it a text file that this user may read",
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
                "it is no URL; write amqp://user:password@host:5672/%2f, with reserved characters percent-encoded",
            );
        };
        if !matches!(url.scheme(), "amqp" | "amqps") {
            return wrong("its scheme must be amqp or amqps");
        }
        // Not shown: with a `?` in a password that was not encoded, it is a part of the password.
        if url.query_pairs().any(|(name, _)| !PARAMETERS.contains(&&*name)) {
            let known = PARAMETERS.join(", ");
            return Err(error::config(
                OPERATION,
                format!("it has a parameter that is not known; known are {known}"),
            ));
        }
        let Ok(mut uri) = self.url.parse::<AMQPUri>() else {
            return wrong("a parameter is no number, or user, password or virtual host are not UTF-8");
        };
        // The library takes an address in brackets for none at all, and goes to localhost.
        match url.host() {
            Some(Host::Ipv6(address)) => uri.authority.host = address.to_string(),
            Some(_) => {}
            None => return wrong("it names no host"),
        }
        if self.ca_file.is_some() && uri.scheme == AMQPScheme::AMQP {
            return wrong("there is a CA file but the scheme is amqp, which is not encrypted; write amqps");
        }
        let sends_login =
            !url.username().is_empty() || url.password().is_some() || self.password_file.is_some();
        let is_exposed = uri.scheme == AMQPScheme::AMQP && !is_local_host(&uri.authority.host);
        if sends_login && is_exposed && !self.allow_plaintext {
            return wrong(
                "user and password would go over amqp:// to another host, where anybody on the way can read them; write amqps://, \
                 or allow it explicitly (allow_plaintext) on a network where nobody else can be",
            );
        }
        let seconds = self.heartbeat.as_secs();
        if self.heartbeat.subsec_nanos() != 0 || !(1..=3600).contains(&seconds) {
            return wrong("the heartbeat must be whole seconds, from 1 s to 1 h");
        }
        match uri.query.heartbeat {
            Some(0) => {
                return wrong(
                    "heartbeat=0 would leave dead connections unnoticed; give seconds, or leave it out",
                );
            }
            Some(_) => {}
            None => uri.query.heartbeat = u16::try_from(seconds).ok(),
        }
        let least = LEAST_FRAME_MAX;
        match uri.query.frame_max {
            Some(bytes) if !(least..=GREATEST_FRAME_MAX).contains(&bytes) => {
                return Err(error::config(
                    OPERATION,
                    format!(
                        "its frame_max is no size for a frame; give {least} to {GREATEST_FRAME_MAX} bytes, or leave it out"
                    ),
                ));
            }
            Some(_) => {}
            // Without it the broker's would be taken, and of no limit the buffers are made.
            None => uri.query.frame_max = Some(DEFAULT_FRAME_MAX),
        }
        if self.connect_timeout.is_zero() {
            return wrong("the connect timeout must be more than 0");
        }
        Ok(uri)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.uri() {
            Ok(uri) => format!("{}://{}:{}", uri.scheme, uri.authority.host, uri.authority.port),
            Err(_) => "unusable".to_owned(),
        };
        f.debug_struct("Endpoint")
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
        Endpoint { allow_plaintext: true, ..Endpoint::new(url) }.uri().unwrap()
    }

    #[test]
    fn hosts_of_every_kind_are_found() {
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
        assert!(Endpoint::new("amqp://h?heartbeat=0").check().is_err());
        for heartbeat in [Duration::ZERO, Duration::from_millis(1500), Duration::from_secs(3601)] {
            let endpoint = Endpoint { heartbeat, ..Endpoint::new("amqp://h") };
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
            let refused = Endpoint::new(format!("amqp://h?frame_max={bytes}")).check().unwrap_err();
            assert!(refused.to_string().contains("4096 to 1048576"), "{refused}");
        }
    }

    #[test]
    fn a_login_goes_without_tls_to_this_machine_only() {
        for url in [
            "amqp://u:p@rabbit.example",
            "amqp://u@10.0.0.7/",
            "amqp://u:p@localhost.evil.example/v",
            "amqp://u:p@[2001:db8::7]",
            "amqp://:p@h",
        ] {
            let mut endpoint = Endpoint::new(url);
            assert!(endpoint.check().unwrap_err().to_string().contains("write amqps"), "{url}");
            endpoint.allow_plaintext = true;
            endpoint.check().unwrap();
        }
        let mut file = Endpoint::new("amqp://rabbit.example");
        file.check().unwrap();
        file.password_file = Some("p".into());
        assert!(file.check().is_err());
        for url in
            ["amqps://u:p@rabbit.example", "amqp://u:p@localhost", "amqp://u:p@127.0.0.1", "amqp://u:p@[::1]"]
        {
            Endpoint::new(url).check().unwrap();
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_no_secret_is_shown() {
        for (url, what) in [
            ("mallory:hunter2@host", "scheme"),
            ("//mallory:hunter2@host", "no URL"),
            ("http://mallory:hunter2@host", "scheme"),
            ("amqp://mallory:hunter2@host?verify=none", "not known"),
            ("amqp://mallory:hunter2@host?heartbeat=hunter2", "no number"),
            ("amqp://mallory:hunter2%ff@host", "not UTF-8"),
            ("amqp:///hunter2", "no host"),
            ("amqp://mallory:12?hunter2@host", "not known"),
        ] {
            let endpoint = Endpoint::new(url);
            let said = format!("{:?} {endpoint:?}", endpoint.check().unwrap_err());
            assert!(said.contains(what), "{url}: {said}");
            assert!(!said.contains("hunter2") && !said.contains("mallory"), "{said}");
        }
        let plain = Endpoint { ca_file: Some("ca.pem".into()), ..Endpoint::new("amqp://u:hunter2@h") };
        assert!(plain.check().unwrap_err().to_string().contains("write amqps"));
        let shown =
            format!("{:?}", Endpoint::new("amqps://mallory:hunter2@rabbit.example/secret?heartbeat=5"));
        assert!(
            shown.contains("amqps://rabbit.example:5671")
                && !shown.contains("mallory")
                && !shown.contains("hunter2")
        );
    }
}
