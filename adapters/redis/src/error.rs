//! Classifies errors of the Redis client: [`classify`] is the only place where they enter.

use std::borrow::Cow;

use onceward::{Error, ErrorKind};
use redis::RedisError;

/// Converts `error`, which occurred during `operation`.
pub(crate) fn classify(operation: &'static str, error: RedisError) -> Error {
    let (kind, context) = meaning(&error);
    Error::new(kind, operation, context).with_source(error)
}

/// An invalid configuration, described by `problem`.
pub(crate) fn invalid_config(problem: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, "set up the Redis store", problem)
}

/// A reply that none of this version's scripts and commands return. It says nothing about the record of any key: whether
/// the call was applied is unknown, and the caller repeats it with the same owner tokens.
pub(crate) fn invalid_reply(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Unknown,
        operation,
        "the reply is not what this version's scripts answer; check for a proxy or another kind of server in between",
    )
}

fn meaning(error: &RedisError) -> (ErrorKind, &'static str) {
    if let Some(code) = server_code(error) {
        return meaning_of_code(&code, error.detail().unwrap_or_default());
    }
    if error.is_timeout() {
        return TIMEOUT;
    }
    match error.kind() {
        redis::ErrorKind::Io => meaning_of_io(error),
        // The client passes the answer to AUTH or HELLO on as text.
        redis::ErrorKind::AuthenticationFailed => match known_code_in(&error.to_string()) {
            Some(code) => meaning_of_code(code, ""),
            None => DENIED,
        },
        redis::ErrorKind::Parse => {
            (ErrorKind::Unavailable, "the connection broke within a reply, or the server is not Redis")
        }
        redis::ErrorKind::MasterNameNotFoundBySentinel => (
            ErrorKind::Unavailable,
            "no Sentinel knows a primary of this name at the moment; if this persists, check the name",
        ),
        redis::ErrorKind::NoValidReplicasFoundBySentinel | redis::ErrorKind::ClusterConnectionNotFound => {
            (ErrorKind::Unavailable, "the node that holds the keys cannot be reached")
        }
        redis::ErrorKind::InvalidClientConfig | redis::ErrorKind::EmptySentinelList => {
            (ErrorKind::Config, "the client rejects the address or its settings; check the URL")
        }
        redis::ErrorKind::RESP3NotSupported => {
            (ErrorKind::Config, "the server does not speak RESP3; remove protocol=resp3 from the URL")
        }
        redis::ErrorKind::Client if is_tls_refusal(error) => TLS,
        _ => UNKNOWN,
    }
}

const TIMEOUT: (ErrorKind, &str) =
    (ErrorKind::Timeout, "the server did not answer in time; whether the call was applied is unknown");
const DENIED: (ErrorKind, &str) =
    (ErrorKind::Denied, "the server rejects the user or the password; check both, and the user's ACL");
const TLS: (ErrorKind, &str) = (
    ErrorKind::Config,
    "the TLS handshake failed; check the CA, the server's certificate and its host name, and that the port speaks TLS",
);
const UNKNOWN: (ErrorKind, &str) = (ErrorKind::Unknown, "the server answered with an unexpected error");

fn meaning_of_io(error: &RedisError) -> (ErrorKind, &'static str) {
    if error.is_connection_refusal() {
        return (ErrorKind::Unavailable, "nothing listens at the address; is the server running?");
    }
    if is_tls_refusal(error) {
        return TLS;
    }
    (ErrorKind::Unavailable, "the connection was lost or could not be opened")
}

/// The client wraps the errors of rustls so that only their text is accessible.
fn is_tls_refusal(error: &RedisError) -> bool {
    let text = error.to_string();
    ["certificate", "fatal alert", "corrupt message", "peer is incompatible", "peer misbehaved"]
        .iter()
        .any(|sign| text.contains(sign))
}

/// The server's error code. A script wraps the code of a failed command in text, differently in each server version, so
/// the text is searched for known codes.
fn server_code(error: &RedisError) -> Option<String> {
    let code = match error.kind() {
        redis::ErrorKind::Server(_) | redis::ErrorKind::Extension => error.code()?,
        _ => return None,
    };
    if code == "ERR" {
        let detail = error.detail().unwrap_or_default();
        if let Some(inner) = known_code_in(detail) {
            return Some(inner.to_owned());
        }
    }
    Some(code.to_owned())
}

/// A known code within the text of another error.
fn known_code_in(text: &str) -> Option<&'static str> {
    const CODES: [&str; 13] = [
        "READONLY",
        "OOM",
        "LOADING",
        "MISCONF",
        "NOREPLICAS",
        "NOPERM",
        "MASTERDOWN",
        "WRONGPASS",
        "BUSY",
        "CLUSTERDOWN",
        "NOAUTH",
        "DENIED",
        "UNBLOCKED",
    ];
    let word = |word: &str| CODES.into_iter().find(|code| word.trim_start_matches('-') == *code);
    if let Some(code) = text.split(|c: char| c.is_whitespace() || c == ':').find_map(word) {
        return Some(code);
    }
    let lower = text.to_ascii_lowercase();
    if lower.contains("acl failure")
        || lower.contains("no permission")
        || lower.contains("can't run this command")
    {
        return Some("NOPERM");
    }
    if lower.contains("max number of clients") {
        return Some("MAXCLIENTS");
    }
    None
}

fn meaning_of_code(code: &str, detail: &str) -> (ErrorKind, &'static str) {
    use ErrorKind::{Config, Denied, Internal, Unavailable, Unsupported};
    match code {
        "READONLY" => (
            Unavailable,
            "the server is a replica, perhaps since a failover; if this persists, configure the primary or the Sentinels",
        ),
        "OOM" => (
            Unavailable,
            "the server is out of memory (maxmemory with noeviction); raise maxmemory, or shorten the TTL of keys",
        ),
        "LOADING" => (Unavailable, "the server is still loading its data"),
        "BUSY" => (Unavailable, "the server is busy with a long-running script"),
        "MISCONF" => (Unavailable, "the server cannot persist its data and rejects writes; see its log"),
        "NOREPLICAS" => {
            (Unavailable, "too few replicas are connected for the server's min-replicas-to-write")
        }
        "MASTERDOWN" => (Unavailable, "the server is a replica that has lost its primary"),
        "CLUSTERDOWN" => (Unavailable, "the cluster is down, or no node serves the keys' slots"),
        "MOVED" | "ASK" | "TRYAGAIN" => (Unavailable, "the keys' slots are moving to another node"),
        "MAXCLIENTS" => (Unavailable, "the server has reached its connection limit; raise maxclients"),
        "NOAUTH" => (Denied, "the server requires a password; give one"),
        "WRONGPASS" => DENIED,
        "NOPERM" => (
            Denied,
            "the user lacks a permission on a command or on the keys; the README lists what the ACL must allow",
        ),
        "DENIED" => (
            Denied,
            "the server is in protected mode and rejects other hosts; set a password or a bind address on it",
        ),
        "UNBLOCKED" => (Unavailable, "the server became a replica during the call"),
        "CROSSSLOT" => (
            Config,
            "the server is part of a cluster; set topology = \"cluster\" (RedisConfig::cluster in Rust), so that keys of different slots are sent apart",
        ),
        "NOSCRIPT" => (Unavailable, "the server lost the script again; check what runs SCRIPT FLUSH"),
        "ERR" if detail.contains("cluster support disabled") => (
            Config,
            "the server is not part of a cluster; set topology = \"standalone\", the default (RedisConfig::new in Rust)",
        ),
        "ERR" if detail.contains("unknown command") => {
            (Unsupported, "the server lacks a command; Redis 6.2 or later, or Valkey, is required")
        }
        "ERR" if detail.contains("DB index is out of range") || detail.contains("invalid DB index") => {
            (Config, "the server has no database of this number; correct it in the URL")
        }
        "ERR" if detail.contains("script") => (Internal, "a script of this program failed"),
        _ => UNKNOWN,
    }
}

/// True if the connection must be replaced: it is broken, or leads to a server that is no longer the primary.
pub(crate) fn ends_connection(error: &RedisError) -> bool {
    if error.is_io_error() || error.is_timeout() || error.is_unrecoverable_error() {
        return true;
    }
    matches!(server_code(error).as_deref(), Some("READONLY" | "MASTERDOWN" | "NOAUTH" | "UNBLOCKED"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn kind_of(reply: &str) -> ErrorKind {
        let error = redis::parse_redis_value(format!("-{reply}\r\n").as_bytes())
            .and_then(redis::Value::extract_error)
            .unwrap_err();
        classify("test", error).kind()
    }

    #[test]
    fn temporary_conditions_are_retryable() {
        for reply in [
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "MOVED 3999 127.0.0.1:6381",
            "CLUSTERDOWN Hash slot not served",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "MISCONF Errors writing to the AOF file: No space left on device",
            "NOREPLICAS Not enough good replicas to write.",
            "ERR max number of clients reached",
            // The replies of scripts in 6.2 and 7.0 when one of their commands is rejected.
            "ERR Error running script (call to f_0): @user_script:1: -OOM command not allowed when used memory > 'maxmemory'.",
            "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -READONLY You can't write against a read only replica.",
            "OOM command not allowed when used memory > 'maxmemory'. script: 4ca238, on @user_script:1.",
        ] {
            assert_eq!(kind_of(reply), ErrorKind::Unavailable, "{reply}");
        }
    }

    #[test]
    fn missing_permissions_are_not_retryable() {
        for reply in [
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "NOPERM No permissions to access a key",
            "ERR Error running script (call to f_0): @user_script:1: -NOPERM this user has no permissions to run the 'set' command or its subcommand",
            "ERR The user executing the script can't run this command or subcommand script: 4ca238, on @user_script:1.",
            "ERR ACL failure in script: User has no permissions to run the 'set' command script: 4ca238, on @user_script:1.",
        ] {
            assert_eq!(kind_of(reply), ErrorKind::Denied, "{reply}");
        }
    }

    #[test]
    fn misconfiguration_has_a_kind_of_its_own() {
        assert_eq!(kind_of("ERR This instance has cluster support disabled"), ErrorKind::Config);
        assert_eq!(kind_of("CROSSSLOT Keys in request don't hash to the same slot"), ErrorKind::Config);
        assert_eq!(
            kind_of("ERR unknown command 'EVALSHA', with args beginning with: "),
            ErrorKind::Unsupported
        );
        assert_eq!(kind_of("ERR something new"), ErrorKind::Unknown);
    }

    #[test]
    fn a_timeout_is_unknown_and_a_lost_connection_is_unavailable() {
        let of = |kind| classify("test", RedisError::from(io::Error::from(kind))).kind();
        assert_eq!(of(io::ErrorKind::TimedOut), ErrorKind::Timeout);
        assert_eq!(of(io::ErrorKind::ConnectionReset), ErrorKind::Unavailable);
        assert_eq!(of(io::ErrorKind::ConnectionRefused), ErrorKind::Unavailable);
    }
}
