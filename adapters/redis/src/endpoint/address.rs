//! Parses and validates the URLs of Redis servers.

use onceward::Error;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::error::invalid_config;

/// Parses the URL of a server.
///
/// # Errors
/// [`ErrorKind::Config`](onceward::ErrorKind::Config). The error says what is wrong and never quotes the URL, which may
/// contain a password.
pub(crate) fn parse(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(|_| {
        invalid_config("the address is not a URL; write redis://host:6379, or rediss://host:6379 for TLS")
    })?;
    if !matches!(url.scheme(), "redis" | "rediss" | "valkey" | "valkeys") {
        return Err(invalid_config(
            "the URL must begin with redis:// (or valkey://) or, for TLS, with rediss:// (or valkeys://)",
        ));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(invalid_config("the URL has no host; write redis://host:6379"));
    }
    if url.fragment().is_some() {
        return Err(invalid_config(
            "the URL has a part after #; TLS is always verified (a private CA goes into `ca`), and a # in a password is written %23",
        ));
    }
    let in_path = url.path().trim_matches('/');
    if !in_path.is_empty() && number(in_path).is_none() {
        return Err(invalid_config("the path must be a database number; a / in a password is written %2F"));
    }
    check_parameters(&url)?;
    Ok(url)
}

/// Parses a list of URLs.
///
/// # Errors
/// Those of [`parse`], and an empty list.
pub(crate) fn parse_all(urls: &[String]) -> Result<Vec<Url>, Error> {
    let urls = urls.iter().map(|url| parse(url)).collect::<Result<Vec<_>, _>>()?;
    if urls.is_empty() { Err(invalid_config("no address is given; give at least one")) } else { Ok(urls) }
}

/// Checks that all addresses of one system agree in TLS, user, password and database.
pub(crate) fn check_uniform(urls: &[Url]) -> Result<(), Error> {
    let settings = |url: &Url| {
        (is_tls(url), url.username().to_owned(), url.password().map(str::to_owned), database(url))
    };
    if urls.windows(2).any(|pair| settings(&pair[0]) != settings(&pair[1])) {
        return Err(invalid_config(
            "the addresses differ in TLS, user, password or database; make them agree",
        ));
    }
    Ok(())
}

pub(crate) fn is_tls(url: &Url) -> bool {
    matches!(url.scheme(), "rediss" | "valkeys")
}

/// Scheme, host and port of `url`: nothing that may be a secret.
pub(crate) fn redacted(url: &str) -> String {
    match parse(url) {
        Ok(url) => {
            format!(
                "{}://{}:{}",
                url.scheme(),
                url.host_str().unwrap_or_default(),
                url.port().unwrap_or(6379)
            )
        }
        Err(_) => "an invalid URL".to_owned(),
    }
}

/// A database number; Redis accepts numbers up to `i32::MAX`.
fn number(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|number| *number <= i32::MAX as u32)
}

/// The database in a URL that [`parse`] has accepted.
pub(crate) fn database(url: &Url) -> Option<u32> {
    let in_query =
        || url.query_pairs().find(|(name, _)| is_database(name)).and_then(|(_, value)| number(&value));
    number(url.path().trim_matches('/')).or_else(in_query)
}

fn is_database(name: &str) -> bool {
    matches!(name, "db" | "database")
}

/// Refuses unknown parameters: their author would expect an effect.
fn check_parameters(url: &Url) -> Result<(), Error> {
    let Some(query) = url.query() else { return Ok(()) };
    if query.contains('@') {
        return Err(invalid_config("the URL has an @ after a ?; a ? in a password is written %3F"));
    }
    let mut named = number(url.path().trim_matches('/'));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or(("", pair));
        if is_database(name) {
            let Some(database) = number(&percent_decode_str(value).decode_utf8_lossy()) else {
                return Err(invalid_config(format!("the URL's parameter {name} must be a database number")));
            };
            if named.replace(database).is_some_and(|other| other != database) {
                return Err(invalid_config("the URL names two databases; remove one"));
            }
            continue;
        }
        // A name of an unusual form may be a secret.
        let is_plain = !name.is_empty()
            && name.len() <= 40
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || b"_-.".contains(&byte));
        let name = if is_plain { name } else { "…" };
        return Err(invalid_config(format!(
            "the URL's parameter {name} is unknown and would have no effect; remove it. Only db is supported: TLS \
             is enabled by rediss:// and always verified; timeouts and certificates have their own settings"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        parse(url).unwrap_err().to_string()
    }

    #[test]
    fn a_database_may_be_in_three_places() {
        for url in ["redis://h/3", "redis://h?db=3", "valkey://h:6379/?database=3", "redis://h/3?db=3"] {
            assert_eq!(database(&parse(url).unwrap()), Some(3), "{url}");
        }
        assert_eq!(database(&parse("valkeys://h").unwrap()), None);
        assert!(refusal("redis://h/1?db=3").contains("two databases"));
        assert!(refusal("redis://h?db=1&database=2").contains("two databases"));
        for url in ["redis://h?db=x", "redis://h?db=", "redis://h?db=-1", "redis://h?database=99999999999"] {
            assert!(refusal(url).contains("must be a database number"), "{url}");
        }
    }

    #[test]
    fn a_parameter_without_effect_is_refused_by_its_name_and_shows_no_secret() {
        for name in ["ssl_cert_reqs", "protocol", "password", "timeout", "addr", "max-retries"] {
            let said = refusal(&format!("redis://h/0?{name}=hunter2"));
            assert!(said.contains(name) && !said.contains("hunter2"), "{said}");
        }
        for url in ["redis://h?hunter2", "redis://h?hunter2=", "redis://h?hunter2=@i", "redis://h?db=hunter2"]
        {
            assert!(!refusal(url).contains("hunter2"), "{url}");
        }
        assert!(parse("redis://h?").is_ok());
    }
}
