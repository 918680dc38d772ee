//! Clients of the `redis` crate, built from a target: address, login, TLS and TCP settings.

use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisError, TlsCertificates,
};
use url::Url;

use crate::endpoint::target::RedisTarget;

/// The kernel probes a silent connection after the first time, repeats at intervals of the second, and closes the
/// connection after three probes without a reply.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));

/// A connection is closed if the peer's kernel does not acknowledge sent data for this time, or for the response timeout if
/// that is longer.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// The address in `url`, without the login, which the target holds.
pub(crate) fn address_of(url: &Url) -> Result<ConnectionAddr, RedisError> {
    let mut bare = url.clone();
    let _ = (bare.set_username(""), bare.set_password(None));
    bare.set_path("");
    bare.set_query(None);
    Ok(bare.as_str().into_connection_info()?.addr().clone())
}

/// A client for one address.
pub(crate) fn client(
    target: &RedisTarget,
    address: &ConnectionAddr,
    password: Option<&str>,
    response_timeout: Duration,
) -> Result<Client, RedisError> {
    let has_tls = matches!(address, ConnectionAddr::TcpTls { .. });
    let info = address.clone().into_connection_info()?;
    let info =
        info.set_redis_settings(login(target, password)).set_tcp_settings(tcp_settings(response_timeout));
    match certificates(target) {
        Some(certificates) if has_tls => Client::build_with_tls(info, certificates),
        _ => Client::open(info),
    }
}

pub(crate) fn tcp_settings(response_timeout: Duration) -> TcpSettings {
    let (idle, interval) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
    let settings = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let (settings, keepalive) =
        (settings.set_user_timeout(UNACKNOWLEDGED.max(response_timeout)), keepalive.with_retries(3));
    let _ = response_timeout;
    settings.set_keepalive(keepalive)
}

fn login(target: &RedisTarget, password: Option<&str>) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_lib_name("onceward", onceward::VERSION)
        .set_db(i64::from(target.database.unwrap_or(0)));
    if let Some(username) = &target.username {
        login = login.set_username(username);
    }
    if let Some(password) = password {
        login = login.set_password(password);
    }
    login
}

pub(crate) fn certificates(target: &RedisTarget) -> Option<TlsCertificates> {
    (target.ca.is_some() || target.client_certificate.is_some()).then(|| TlsCertificates {
        client_tls: target.client_certificate.as_ref().map(|client| ClientTlsConfig {
            client_cert: client.certificate.clone(),
            client_key: client.key.clone(),
        }),
        root_cert: target.ca.clone(),
    })
}
