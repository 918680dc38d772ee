//! TLS policy: a login is sent to another host over verified TLS only.

use onceward::adapter::is_local_host;
use onceward::{Error, ErrorKind};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

/// The parameters of a URL that are known, besides `options[NAME]`.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Refuses parameters that sqlx does not know: it would ignore them, and log them with their values, which may be secrets.
///
/// # Errors
/// `Config`. The name is not shown: after an unencoded `?` in a password it is a part of the password.
pub(crate) fn check_parameters(url: &str) -> Result<(), Error> {
    let Ok(url) = Url::parse(url) else { return Ok(()) };
    let is_known =
        |name: &str| PARAMETERS.contains(&name) || (name.starts_with("options[") && name.ends_with(']'));
    if url.query_pairs().all(|(name, _)| is_known(&name)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        "use the Postgres URL",
        format!(
            "it has a parameter that is not known and would have no effect; remove it; known are {}",
            PARAMETERS.join(", ")
        ),
    ))
}

/// How the TLS mode of a connection is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsPolicy {
    /// The URL gives no mode: the server is verified, except on this host.
    Unspecified,
    /// The URL gives a mode, which is used or refused.
    Specified,
    /// Every mode is allowed.
    AllowPlaintext,
}

impl TlsPolicy {
    /// The policy for a URL without `allow_plaintext`.
    pub(crate) fn of_url(url: &str) -> Self {
        let is_mode = |name: &str| matches!(name, "sslmode" | "ssl-mode");
        let says = Url::parse(url).is_ok_and(|url| url.query_pairs().any(|(name, _)| is_mode(&name)));
        if says { Self::Specified } else { Self::Unspecified }
    }

    /// `options` with the TLS mode in effect.
    ///
    /// # Errors
    /// `Config` if an attacker in the network could read the login or impersonate the server.
    pub(crate) fn secured(self, options: &PgConnectOptions) -> Result<PgConnectOptions, Error> {
        let mode = options.get_ssl_mode();
        let is_verified = matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull);
        if self == Self::AllowPlaintext || is_verified || is_local(options) {
            return Ok(options.clone());
        }
        // sqlx also reads PGSSLMODE. Its default cannot be distinguished from a `prefer` of that variable, and is safe to replace.
        if self == Self::Unspecified && matches!(mode, PgSslMode::Prefer) {
            return Ok(options.clone().ssl_mode(PgSslMode::VerifyFull));
        }
        Err(Error::new(
            ErrorKind::Config,
            "connect to Postgres",
            "the server is on another host and is not verified with this sslmode (from the URL or PGSSLMODE), so that an attacker in \
             the network could read the password or impersonate the server; write sslmode=verify-full with the CA of the server, or \
             set allow_plaintext on a private network",
        ))
    }
}

/// True if sqlx will connect to this host: it prefers a socket to a host.
fn is_local(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || is_local_host(options.get_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> Result<PgSslMode, ErrorKind> {
        let options: PgConnectOptions = url.parse().unwrap();
        let secured = TlsPolicy::of_url(url).secured(&options);
        secured.map(|options| options.get_ssl_mode()).map_err(|error| error.kind())
    }

    #[test]
    fn beyond_this_machine_the_server_is_verified_or_refused() {
        for url in [
            "postgres://u:p@db.example/x",
            "postgres://u:p@10.0.0.1:5432/x",
            "postgres://db.example/x",
            "postgres://u:p@localhost.evil.example/x",
            "postgres://u:p@127.0.0.1/x?host=db.example",
            "postgres://u:p@localhost/x?hostaddr=10.0.0.1",
            "postgres://u:p@127.0.0.1,db.example/x",
            "postgres://u:p@[2001:db8::1]/x",
            "postgres://u:p@db.example/x?sslmode=verify-full",
        ] {
            assert!(matches!(mode(url), Ok(PgSslMode::VerifyFull)), "{url}: {:?}", mode(url));
        }
        assert!(matches!(mode("postgres://u:p@db.example/x?sslmode=verify-ca"), Ok(PgSslMode::VerifyCa)));
        for said in ["disable", "allow", "prefer", "require", "REQUIRE", "verify-full&sslmode=require"] {
            for name in ["sslmode", "ssl-mode"] {
                let url = format!("postgres://u:p@db.example/x?{name}={said}");
                assert_eq!(mode(&url).unwrap_err(), ErrorKind::Config, "{url}");
            }
        }
    }

    #[test]
    fn a_parameter_that_the_client_would_log_is_refused_without_being_shown() {
        for query in [
            "hunter2=x",
            "sslpassword=hunter2",
            "hunter2",
            "passwrod=hunter2&sslmode=verify-full",
            "=hunter2",
        ] {
            let error = check_parameters(&format!("postgres://u@127.0.0.1/x?{query}")).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        check_parameters("postgres://u@h/x?sslmode=require&options[geqo]=off&password=p").unwrap();
        check_parameters("postgres://u@h/x").unwrap();
    }

    #[test]
    fn on_this_machine_or_where_it_is_allowed_everything_stays_as_it_is() {
        for url in [
            "postgres://u:p@127.0.0.1/x",
            "postgres://u:p@localhost/x",
            "postgres://u:p@[::1]/x",
            "postgres://u:p@%2Fvar%2Frun%2Fpostgresql/x",
            "postgres:///x?host=/var/run/postgresql",
        ] {
            assert!(matches!(mode(url), Ok(PgSslMode::Prefer)), "{url}: {:?}", mode(url));
        }
        let options: PgConnectOptions = "postgres://u:p@db.example/x?sslmode=disable".parse().unwrap();
        let allowed = TlsPolicy::AllowPlaintext.secured(&options).unwrap();
        assert!(matches!(allowed.get_ssl_mode(), PgSslMode::Disable));
    }
}
