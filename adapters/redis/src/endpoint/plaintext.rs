//! Refuses to send a login readably to another host.

use onceward::{Error, ErrorKind, is_local_host};
use redis::ConnectionAddr;
use url::Url;

use crate::config::{RedisConfig, Servers};
use crate::endpoint::address::is_tls;

/// Looks at the addresses that are configured. What Sentinels and clusters name later is looked at before it is connected to.
pub(crate) fn check(config: &RedisConfig) -> Result<(), Error> {
    let sends = has_login(config);
    let refused = |urls: &[Url]| urls.iter().any(|url| !is_tls(url) && !is_local(url));
    let is_exposed = match &config.servers {
        Servers::Standalone(url) => sends && refused(std::slice::from_ref(url)),
        Servers::Cluster(nodes) => sends && refused(nodes),
        Servers::Sentinel { sentinels, .. } => {
            let login = config.sentinel_username.is_some() || config.sentinel_password.is_some();
            login && refused(sentinels)
        }
        Servers::Client(_) | Servers::Manager(_) => false,
    };
    if is_exposed && !config.allow_plaintext { Err(exposed("set up the Redis store")) } else { Ok(()) }
}

/// Looks at an address that is about to get the login of `config`, wherever the address came from.
pub(crate) fn check_address(
    config: &RedisConfig,
    address: &ConnectionAddr,
    operation: &'static str,
) -> Result<(), Error> {
    let is_exposed = match address {
        ConnectionAddr::Tcp(host, _) => !is_local_host(host),
        ConnectionAddr::TcpTls { insecure, .. } => *insecure,
        _ => false,
    };
    if is_exposed && sends_login(config) { Err(exposed(operation)) } else { Ok(()) }
}

/// True if a login is sent that must not be readable.
pub(crate) fn sends_login(config: &RedisConfig) -> bool {
    has_login(config) && !config.allow_plaintext
}

fn has_login(config: &RedisConfig) -> bool {
    config.username.is_some() || config.password.is_some() || config.password_from.is_some()
}

fn is_local(url: &Url) -> bool {
    url.host_str().is_some_and(is_local_host)
}

fn exposed(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Config,
        operation,
        "user and password would go without TLS to another host, where anybody on the way can read them; write rediss:// (with \
         Sentinels give a CA for the primary as well), or allow it explicitly (allow_plaintext) on a network where nobody \
         else can be",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_goes_without_tls_to_this_machine_only() {
        let of = |url: &str| RedisConfig::from_url(url).unwrap();
        for refused in [
            of("redis://:pw@redis.example"),
            of("redis://app:pw@10.0.0.1/0"),
            of("valkey://app:pw@localhost.evil.example"),
            of("redis://redis.example").password("pw"),
            of("redis://redis.example").password_from(|| Ok("pw".to_owned())),
            RedisConfig::cluster(["redis://:pw@127.0.0.1", "redis://:pw@10.0.0.2"]).unwrap(),
            RedisConfig::sentinel(["redis://:pw@10.0.0.1:26379"], "orders").unwrap(),
        ] {
            let error = refused.validate().unwrap_err();
            assert!(error.kind() == ErrorKind::Config && error.to_string().contains("rediss://"), "{error}");
            refused.allow_plaintext(true).validate().unwrap();
        }
        for fine in [
            of("redis://redis.example"),
            of("rediss://:pw@redis.example"),
            of("redis://:pw@127.0.0.1"),
            of("redis://:pw@localhost"),
            of("redis://:pw@[::1]"),
            RedisConfig::cluster(["redis://:pw@127.0.0.1:1", "redis://:pw@127.0.0.2:1"]).unwrap(),
            RedisConfig::sentinel(["redis://10.0.0.1:26379"], "orders").unwrap().password("pw").ca("pem"),
        ] {
            fine.validate().unwrap();
        }
    }

    #[test]
    fn an_address_that_is_learnt_is_looked_at_as_well() {
        let config = RedisConfig::sentinel(["redis://127.0.0.1:26379"], "orders").unwrap().password("pw");
        let plain = |host: &str| ConnectionAddr::Tcp(host.to_owned(), 6379);
        check_address(&config, &plain("127.0.0.1"), "x").unwrap();
        assert!(check_address(&config, &plain("10.0.0.1"), "x").is_err());
        let (host, port, tls_params) = ("10.0.0.1".to_owned(), 6379, None);
        check_address(&config, &ConnectionAddr::TcpTls { host, port, insecure: false, tls_params }, "x")
            .unwrap();
        check_address(&config.allow_plaintext(true), &plain("10.0.0.1"), "x").unwrap();
    }
}
