//! Hosts to which credentials may be sent without TLS: [`is_local_host`], [`host_of`].

use std::net::IpAddr;

/// True if a connection to `host` stays on this machine: a loopback address (`127.0.0.0/8`, `::1`, also mapped into IPv6 and in
/// brackets), the name `localhost`, or the path of a Unix socket. Nothing is looked up: every other name, also one that ends
/// in `localhost` or that some resolver maps to this machine, is another host, and so is a text that only some clients take
/// for an address (`127.1`).
///
/// All that connects with a login decides by it whether the login may go without TLS.
///
/// ```
/// use onceward::adapter::is_local_host;
/// assert!(is_local_host("localhost") && is_local_host("127.8.0.1") && is_local_host("[::1]"));
/// assert!(is_local_host("/var/run/postgresql"));
/// assert!(!is_local_host("localhost.example.com") && !is_local_host("10.0.0.1"));
/// ```
pub fn is_local_host(host: &str) -> bool {
    if host.starts_with('/') {
        return true;
    }
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bracketed.unwrap_or(host).parse() {
        Ok(IpAddr::V4(address)) => bracketed.is_none() && address.is_loopback(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.to_ipv4_mapped().is_some_and(|mapped| mapped.is_loopback())
        }
        Err(_) => host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case("localhost"),
    }
}

/// The host of `[PROTOCOL://]host[:port][/…]`, where an IPv6 address stands in brackets.
///
/// ```
/// use onceward::adapter::host_of;
/// assert_eq!(host_of("SASL_SSL://kafka.example:9093"), "kafka.example");
/// assert_eq!(host_of("[::1]:9092"), "[::1]");
/// ```
pub fn host_of(address: &str) -> &str {
    let address = address.trim();
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let address = address.split('/').next().unwrap_or_default();
    match address.find(']') {
        Some(end) if address.starts_with('[') => &address[..=end],
        _ => match address.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            _ => address,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_leave_the_machine_is_local() {
        for host in [
            "localhost",
            "LocalHost",
            "localhost.",
            "127.0.0.1",
            "127.255.255.254",
            "::1",
            "[::1]",
            "0:0:0:0:0:0:0:1",
            "::ffff:127.0.0.1",
            "[::ffff:127.9.9.9]",
            "/",
            "/var/run/postgresql",
        ] {
            assert!(is_local_host(host), "{host}");
        }
        for host in [
            "",
            ".",
            "localhost..",
            "localhost.evil.example",
            "evil.localhost",
            "xlocalhost",
            "local",
            "127.0.0.1.nip.io",
            "127.1",
            "127.0.0.1.",
            "[127.0.0.1]",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0.0.0.0",
            "::",
            "10.0.0.1",
            "128.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "::1%eth0",
            "fe80::1",
            " localhost",
            "localhost,evil.example",
            "127.0.0.1,10.0.0.1",
            "%2Fvar",
            "localhost/x",
            "[localhost]",
            "redis",
            "ｌocalhost",
        ] {
            assert!(!is_local_host(host), "{host}");
        }
    }
}
