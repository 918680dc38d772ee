//! A parsed and validated endpoint: [`RedisTarget`].

use onceward::{Error, ErrorKind};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::endpoint::address::{check_uniform, database, is_tls, parse, parse_all};
use crate::endpoint::plaintext;
use crate::endpoint::{ClientCertificate, PasswordProvider, RedisEndpoint, RedisServers};
use crate::error::invalid_config;

/// An endpoint whose URLs are parsed, with one place for user, password and database.
#[derive(Clone)]
pub(crate) struct RedisTarget {
    pub(crate) servers: TargetServers,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) password_from: Option<PasswordProvider>,
    pub(crate) sentinel_username: Option<String>,
    pub(crate) sentinel_password: Option<String>,
    pub(crate) database: Option<u32>,
    pub(crate) ca: Option<Vec<u8>>,
    pub(crate) client_certificate: Option<ClientCertificate>,
    pub(crate) allow_plaintext: bool,
}

/// The parsed form of [`RedisServers`].
#[derive(Clone)]
pub(crate) enum TargetServers {
    Standalone(Url),
    Sentinel { sentinels: Vec<Url>, primary: String },
    Cluster(Vec<Url>),
}

impl RedisTarget {
    /// Parses `endpoint` and checks that its values agree.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the value and the fix, without quoting a URL.
    pub(crate) fn resolve(endpoint: &RedisEndpoint) -> Result<Self, Error> {
        let servers = TargetServers::parse(&endpoint.servers)?;
        let url = servers.first();
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let url_username = (!url.username().is_empty()).then(|| decode(url.username()));
        let url_password = url.password().map(decode);
        let (username, password, sentinel_username, sentinel_password) = match servers {
            TargetServers::Sentinel { .. } => (None, None, url_username, url_password),
            _ => (url_username, url_password, None, None),
        };
        let target = Self {
            username: endpoint.username.clone().or(username),
            password: endpoint.password.clone().or(password),
            password_from: endpoint.password_from.clone(),
            sentinel_username,
            sentinel_password,
            database: endpoint.database.or_else(|| database(url)),
            ca: endpoint.ca.clone(),
            client_certificate: endpoint.client_certificate.clone(),
            allow_plaintext: endpoint.allow_plaintext,
            servers,
        };
        target.check()?;
        Ok(target)
    }

    fn check(&self) -> Result<(), Error> {
        let may_use_tls = match &self.servers {
            TargetServers::Standalone(url) => is_tls(url),
            TargetServers::Sentinel { sentinels, .. } => {
                check_uniform(sentinels)?;
                true
            }
            TargetServers::Cluster(nodes) => {
                check_uniform(nodes)?;
                if self.database.is_some_and(|database| database != 0) {
                    return Err(invalid_config("a cluster has database 0 only; leave the database out"));
                }
                nodes.iter().all(is_tls)
            }
        };
        if !may_use_tls && (self.ca.is_some() || self.client_certificate.is_some()) {
            return Err(invalid_config(
                "a certificate is given, but the URL begins with redis://; use rediss:// for TLS",
            ));
        }
        if self.username.is_some() && self.password.is_none() && self.password_from.is_none() {
            return Err(invalid_config(
                "a user name is given without a password; Redis requires both to log in",
            ));
        }
        let exposes_login = !self.allow_plaintext
            && match &self.servers {
                TargetServers::Standalone(url) => {
                    self.has_login() && plaintext::is_exposed(std::slice::from_ref(url))
                }
                TargetServers::Cluster(nodes) => self.has_login() && plaintext::is_exposed(nodes),
                TargetServers::Sentinel { sentinels, .. } => {
                    let has_login = self.sentinel_username.is_some() || self.sentinel_password.is_some();
                    has_login && plaintext::is_exposed(sentinels)
                }
            };
        if exposes_login { Err(plaintext::refused("set up the Redis store")) } else { Ok(()) }
    }

    /// True if a user or password is sent and must not be readable on the network.
    pub(crate) fn protects_login(&self) -> bool {
        self.has_login() && !self.allow_plaintext
    }

    fn has_login(&self) -> bool {
        self.username.is_some() || self.password.is_some() || self.password_from.is_some()
    }

    /// True if connections to the servers that hold keys use TLS.
    pub(crate) fn uses_tls(&self) -> bool {
        match &self.servers {
            TargetServers::Standalone(url) => is_tls(url),
            TargetServers::Sentinel { sentinels, .. } => sentinels.iter().any(is_tls) || self.ca.is_some(),
            TargetServers::Cluster(nodes) => nodes.iter().any(is_tls),
        }
    }

    /// The password for a connection that is about to be opened.
    ///
    /// # Errors
    /// That of the password provider.
    pub(crate) async fn current_password(&self) -> Result<Option<String>, Error> {
        let Some(provider) = self.password_from.clone() else { return Ok(self.password.clone()) };
        // It may read a file, which blocks the thread.
        match tokio::task::spawn_blocking(move || provider()).await {
            Ok(password) => password.map(Some),
            Err(error) => {
                let what = "the password provider did not return";
                Err(Error::new(ErrorKind::Internal, "log in to Redis", what).with_source(error))
            }
        }
    }
}

impl TargetServers {
    fn parse(servers: &RedisServers) -> Result<Self, Error> {
        Ok(match servers {
            RedisServers::Standalone(url) => Self::Standalone(parse(url)?),
            RedisServers::Sentinel { sentinels, primary } => {
                if primary.is_empty() {
                    return Err(invalid_config(
                        "the name of the Sentinels' primary is empty; it is in their \"sentinel monitor\"",
                    ));
                }
                Self::Sentinel { sentinels: parse_all(sentinels)?, primary: primary.clone() }
            }
            RedisServers::Cluster(nodes) => Self::Cluster(parse_all(nodes)?),
        })
    }

    fn first(&self) -> &Url {
        match self {
            Self::Standalone(url) => url,
            // `parse_all` refuses an empty list.
            Self::Sentinel { sentinels: urls, .. } | Self::Cluster(urls) => &urls[0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standalone(url: &str) -> RedisEndpoint {
        RedisEndpoint::new(RedisServers::Standalone(url.to_owned()))
    }

    fn cluster(urls: &[&str]) -> RedisEndpoint {
        RedisEndpoint::new(RedisServers::Cluster(urls.iter().map(|url| (*url).to_owned()).collect()))
    }

    fn sentinel(urls: &[&str], primary: &str) -> RedisEndpoint {
        let sentinels = urls.iter().map(|url| (*url).to_owned()).collect();
        RedisEndpoint::new(RedisServers::Sentinel { sentinels, primary: primary.to_owned() })
    }

    fn with(mut endpoint: RedisEndpoint, change: impl FnOnce(&mut RedisEndpoint)) -> RedisEndpoint {
        change(&mut endpoint);
        endpoint
    }

    fn refusal(endpoint: &RedisEndpoint) -> Option<Error> {
        RedisTarget::resolve(endpoint).err()
    }

    #[test]
    fn user_password_and_database_come_from_the_url() {
        let target = RedisTarget::resolve(&standalone("redis://app:p%40ss%2f%zz@127.0.0.1/7")).unwrap();
        assert_eq!(target.username.as_deref(), Some("app"));
        assert_eq!(target.password.as_deref(), Some("p@ss/%zz"));
        assert_eq!(target.database, Some(7));
    }

    #[test]
    fn values_that_disagree_are_refused() {
        assert!(refusal(&standalone("redis://127.0.0.1")).is_none());
        let with_ca = with(standalone("redis://127.0.0.1"), |endpoint| endpoint.ca = Some(b"pem".to_vec()));
        assert!(refusal(&with_ca).unwrap().to_string().contains("use rediss://"));
        let without_password =
            with(standalone("redis://127.0.0.1"), |endpoint| endpoint.username = Some("app".into()));
        assert!(refusal(&without_password).is_some());
        assert!(refusal(&cluster(&["redis://a", "rediss://b"])).is_some());
        assert!(refusal(&with(cluster(&["redis://a"]), |endpoint| endpoint.database = Some(1))).is_some());
        assert!(refusal(&cluster(&[])).is_some());
        assert!(refusal(&sentinel(&["redis://a"], "")).is_some());
        assert!(refusal(&sentinel(&[], "x")).is_some());
        assert!(refusal(&cluster(&["redis://a?db=1"])).is_some());
        assert!(refusal(&sentinel(&["redis://a/1", "redis://b/2"], "x")).is_some());
    }

    #[test]
    fn tls_cannot_be_left_unverified() {
        assert!(refusal(&standalone("rediss://127.0.0.1/#insecure")).is_some());
    }

    #[test]
    fn a_login_is_sent_without_tls_to_this_machine_only() {
        let password = |endpoint| with(endpoint, |endpoint| endpoint.password = Some("pw".into()));
        for exposed in [
            standalone("redis://:pw@redis.example"),
            standalone("redis://app:pw@10.0.0.1/0"),
            standalone("valkey://app:pw@localhost.evil.example"),
            password(standalone("redis://redis.example")),
            with(standalone("redis://redis.example"), |endpoint| {
                endpoint.password_from = Some(std::sync::Arc::new(|| Ok("pw".to_owned())));
            }),
            cluster(&["redis://:pw@127.0.0.1", "redis://:pw@10.0.0.2"]),
            sentinel(&["redis://:pw@10.0.0.1:26379"], "orders"),
        ] {
            let error = refusal(&exposed).unwrap();
            assert!(error.kind() == ErrorKind::Config && error.to_string().contains("rediss://"), "{error}");
            assert!(refusal(&with(exposed, |endpoint| endpoint.allow_plaintext = true)).is_none());
        }
        for protected in [
            standalone("redis://redis.example"),
            standalone("rediss://:pw@redis.example"),
            standalone("redis://:pw@127.0.0.1"),
            standalone("redis://:pw@localhost"),
            standalone("redis://:pw@[::1]"),
            cluster(&["redis://:pw@127.0.0.1:1", "redis://:pw@127.0.0.2:1"]),
            with(password(sentinel(&["redis://10.0.0.1:26379"], "orders")), |endpoint| {
                endpoint.ca = Some(b"pem".to_vec());
            }),
        ] {
            assert!(refusal(&protected).is_none());
        }
    }
}
