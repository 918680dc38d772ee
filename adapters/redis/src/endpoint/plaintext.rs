//! Refuses to send a login without TLS to another host.

use onceward::adapter::is_local_host;
use onceward::{Error, ErrorKind};
use redis::ConnectionAddr;
use url::Url;

use crate::endpoint::address::is_tls;

/// True if one of `urls` names another host without TLS.
pub(crate) fn is_exposed(urls: &[Url]) -> bool {
    urls.iter().any(|url| !is_tls(url) && !url.host_str().is_some_and(is_local_host))
}

/// Checks an address that is about to receive a login, whether it was configured, or named by a Sentinel or a node.
///
/// # Errors
/// [`ErrorKind::Config`] if it is on another host and without verified TLS.
pub(crate) fn check_address(address: &ConnectionAddr, operation: &'static str) -> Result<(), Error> {
    let is_exposed = match address {
        ConnectionAddr::Tcp(host, _) => !is_local_host(host),
        ConnectionAddr::TcpTls { insecure, .. } => *insecure,
        _ => false,
    };
    if is_exposed { Err(refused(operation)) } else { Ok(()) }
}

pub(crate) fn refused(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Config,
        operation,
        "user and password would be sent without TLS to another host, where anybody on the path can read them; use \
         rediss:// (with Sentinels also give a CA for the primary), or allow it explicitly (allow_plaintext) on an \
         isolated network",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_a_server_names_is_checked_as_well() {
        let plain = |host: &str| ConnectionAddr::Tcp(host.to_owned(), 6379);
        check_address(&plain("127.0.0.1"), "x").unwrap();
        assert!(check_address(&plain("10.0.0.1"), "x").is_err());
        let tls = |insecure| ConnectionAddr::TcpTls {
            host: "10.0.0.1".to_owned(),
            port: 6379,
            insecure,
            tls_params: None,
        };
        check_address(&tls(false), "x").unwrap();
        assert!(check_address(&tls(true), "x").is_err());
    }
}
