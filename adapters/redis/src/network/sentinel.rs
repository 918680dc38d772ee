//! Looks up the primary at Sentinels.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use onceward::{Error, ErrorKind};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{Client, ConnectionAddr, RedisError, TlsMode};
use url::Url;

use crate::endpoint::address::is_tls;
use crate::endpoint::plaintext::check_address;
use crate::endpoint::target::RedisTarget;
use crate::error::classify;
use crate::network::client::{address_of, certificates, tcp_settings};

/// Asks all Sentinels at once for the primary and returns a client for it. The first answer counts, so that unreachable
/// Sentinels cost no time.
///
/// # Errors
/// No Sentinel answers, none knows the primary, or the login would be sent to it without TLS.
pub(crate) async fn find_primary(
    operation: &'static str,
    target: &RedisTarget,
    primary: &str,
    sentinels: impl Iterator<Item = Result<SentinelClient, RedisError>>,
) -> Result<Client, Error> {
    let mut lookups: FuturesUnordered<_> =
        sentinels.map(|sentinel| look_up(operation, target, primary, sentinel)).collect();
    let mut worst: Option<Error> = None;
    while let Some(answer) = lookups.next().await {
        match answer {
            Ok(client) => return Ok(client),
            // A permanent error is more useful than that of an unreachable Sentinel.
            Err(error) => {
                let is_worse = |known: &Error| known.is_retryable() && !error.is_retryable();
                if worst.as_ref().is_none_or(is_worse) {
                    worst = Some(error);
                }
            }
        }
    }
    Err(worst.unwrap_or_else(|| Error::new(ErrorKind::Config, operation, "no Sentinel is configured")))
}

/// Asks one Sentinel. Its client logs in to the primary to verify its role, so the address of the primary is checked first.
async fn look_up(
    operation: &'static str,
    target: &RedisTarget,
    primary: &str,
    sentinel: Result<SentinelClient, RedisError>,
) -> Result<Client, Error> {
    let failed = |error| classify(operation, error);
    let mut sentinel = sentinel.map_err(failed)?;
    if target.protects_login() && !target.uses_tls() {
        let client = sentinel.async_get_sentinel_client().await.map_err(failed)?;
        let mut connection = client.get_multiplexed_async_connection().await.map_err(failed)?;
        let mut query = redis::cmd("SENTINEL");
        query.arg("GET-MASTER-ADDR-BY-NAME").arg(primary);
        let answer: Option<(String, u16)> = query.query_async(&mut connection).await.map_err(failed)?;
        if let Some((host, port)) = answer {
            check_address(&ConnectionAddr::Tcp(host, port), operation)?;
        }
    }
    let client = sentinel.async_get_client().await.map_err(failed)?;
    if target.protects_login() {
        check_address(client.get_connection_info().addr(), operation)?;
    }
    Ok(client)
}

/// A client of `sentinels`, with the login of the Sentinels and that of the primary.
pub(crate) fn sentinel_client(
    sentinels: &[Url],
    primary: &str,
    target: &RedisTarget,
    password: Option<&str>,
    response_timeout: Duration,
) -> Result<SentinelClient, RedisError> {
    let addresses = sentinels.iter().map(address_of).collect::<Result<Vec<_>, _>>()?;
    let mut builder = SentinelClientBuilder::new(addresses, primary, SentinelServerType::Master)?
        .set_client_to_redis_tcp_settings(tcp_settings(response_timeout))
        .set_client_to_redis_db(i64::from(target.database.unwrap_or(0)));
    if let Some(username) = &target.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = password {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(username) = &target.sentinel_username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = &target.sentinel_password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    if target.uses_tls() {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates(target) {
        if sentinels.iter().any(is_tls) {
            builder = builder.set_client_to_sentinel_certificates(certificates.clone());
        }
        builder = builder.set_client_to_redis_certificates(certificates);
    }
    builder.build()
}
