//! URLs of Redis servers: what they may say.

use onceward::Error;
use url::Url;

use crate::config::wrong;

/// A URL of Redis. The error says what is wrong, not what was found: that may hold a password.
pub(crate) fn parse(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(|_| {
        wrong("the address is no URL; it looks like redis://host:6379, or rediss://host:6379 for TLS")
    })?;
    if !matches!(url.scheme(), "redis" | "rediss" | "valkey" | "valkeys") {
        return Err(wrong(
            "the URL must begin with redis:// (or valkey://) or, for TLS, with rediss:// (or valkeys://)",
        ));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("the URL names no host; it looks like redis://host:6379"));
    }
    if url.fragment().is_some() {
        return Err(wrong(
            "the URL has a part after #; TLS is always verified (a CA of your own goes into `ca`), and a # in a password is written %23",
        ));
    }
    let in_path = url.path().trim_matches('/');
    if !in_path.is_empty() && number(in_path).is_none() {
        return Err(wrong(
            "what follows the host must be a database number; a / in a password is written %2F",
        ));
    }
    check_parameters(&url)?;
    Ok(url)
}

pub(crate) fn parse_all<'u>(urls: impl IntoIterator<Item = &'u str>) -> Result<Vec<Url>, Error> {
    let urls = urls.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if urls.is_empty() { Err(wrong("no address is given; name at least one")) } else { Ok(urls) }
}

/// Several addresses of one system are reached in one way.
pub(crate) fn alike(urls: &[Url]) -> Result<(), Error> {
    let way = |url: &Url| {
        (is_tls(url), url.username().to_owned(), url.password().map(str::to_owned), database(url))
    };
    if urls.windows(2).any(|pair| way(&pair[0]) != way(&pair[1])) {
        return Err(wrong("the addresses differ in TLS, user, password or database; give all of them alike"));
    }
    Ok(())
}

pub(crate) fn is_tls(url: &Url) -> bool {
    matches!(url.scheme(), "rediss" | "valkeys")
}

/// `%41` → `A`; what is no escape stays.
pub(crate) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| std::str::from_utf8(tail.get(..2)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Host and port, and nothing that may be a secret.
pub(crate) fn place(url: &Url) -> String {
    format!("{}://{}:{}", url.scheme(), url.host_str().unwrap_or_default(), url.port().unwrap_or(6379))
}

/// A database number; Redis takes no larger one.
fn number(text: &str) -> Option<i64> {
    text.parse::<u32>().ok().filter(|number| *number <= i32::MAX as u32).map(i64::from)
}

/// The database that a URL names, which [`parse`] has checked.
pub(crate) fn database(url: &Url) -> Option<i64> {
    let in_query =
        || url.query_pairs().find(|(name, _)| is_database(name)).and_then(|(_, value)| number(&value));
    number(url.path().trim_matches('/')).or_else(in_query)
}

fn is_database(name: &str) -> bool {
    matches!(name, "db" | "database")
}

/// A parameter that has no effect would be a setting that its author believes in.
fn check_parameters(url: &Url) -> Result<(), Error> {
    let Some(query) = url.query() else { return Ok(()) };
    if query.contains('@') {
        return Err(wrong("the URL has an @ after a ?; a ? in a password is written %3F"));
    }
    let mut named = number(url.path().trim_matches('/'));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or(("", pair));
        if is_database(name) {
            let Some(database) = number(&percent_decode(value)) else {
                return Err(wrong(format!("the URL's parameter {name} must be a database number")));
            };
            if named.replace(database).is_some_and(|other| other != database) {
                return Err(wrong("the URL names two databases; leave one out"));
            }
            continue;
        }
        // What has no name of the usual form may be a secret.
        let is_plain = !name.is_empty()
            && name.len() <= 40
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || b"_-.".contains(&byte));
        let name = if is_plain { name } else { "…" };
        return Err(wrong(format!(
            "the URL's parameter {name} is unknown and would have no effect; remove it. Only db is read here: TLS is \
             asked for by rediss:// and always verified, timeouts and certificates have settings of their own"
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
    fn a_database_may_stand_in_three_places() {
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
