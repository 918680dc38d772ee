//! The address of a service: a URL, `host:port`, or a name. Printed without its password and query secrets.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

use super::secret::REDACTED;

/// Query parameters that connection URLs commonly carry and that are no secret. All others are redacted.
const PLAIN_PARAMETERS: [&str; 17] = [
    "application_name",
    "auth_mechanism",
    "channel_max",
    "client_name",
    "connection_timeout",
    "db",
    "dbname",
    "frame_max",
    "heartbeat",
    "host",
    "locale",
    "port",
    "protocol",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "verify",
];

/// A URL or another address, redacted by `Debug` and `Serialize`; it has no `Display`.
///
/// Redacted are the password, the user name where it may be a token (it stands alone, or the URL is one of HTTP), query
/// parameters not known to be harmless, and fragments. A secret in the path cannot be distinguished from a path and is
/// printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Address(String);

impl Address {
    /// The address as it was written, with its secrets, for the one place that connects.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The address with its secrets replaced by `***`, for logs and `config show`.
    pub fn redacted(&self) -> String {
        redact(&self.0)
    }

    /// True for a blank text.
    pub fn is_empty(&self) -> bool {
        self.0.trim().is_empty()
    }

    /// True for a URL with one of these schemes.
    pub fn has_scheme(&self, schemes: &[&str]) -> bool {
        Url::parse(&self.0).is_ok_and(|url| schemes.contains(&url.scheme()))
    }

    /// True for a URL with a password in it.
    pub fn has_password(&self) -> bool {
        Url::parse(&self.0).is_ok_and(|url| url.password().is_some())
    }
}

impl From<String> for Address {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A URL whose path is not shown: that of a web hook, where it is often the secret itself, or of an endpoint, where it may be the rest
/// of a login that was cut off. Redacted like an [`Address`], and its path as well.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct HookUrl(Address);

impl HookUrl {
    /// The URL as it was written, with its secrets, for the one place that connects.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// The URL as an address.
    pub fn address(&self) -> &Address {
        &self.0
    }

    /// The URL with its secrets and its path replaced by `***`, for logs and `config show`.
    pub fn redacted(&self) -> String {
        let redacted = self.0.redacted();
        let Ok(mut url) = Url::parse(&redacted) else { return redacted };
        if !matches!(url.path(), "" | "/") {
            url.set_path(REDACTED);
        }
        url.into()
    }
}

impl fmt::Debug for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl Serialize for HookUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.redacted())
    }
}

impl JsonSchema for HookUrl {
    fn schema_name() -> Cow<'static, str> {
        "HookUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A URL. Its login, path and query are never printed.",
        })
    }
}

fn redact(text: &str) -> String {
    if text.contains("://") {
        return redact_url(text).unwrap_or_else(|| REDACTED.to_owned());
    }
    match text.rsplit_once('@') {
        Some((_, host)) => format!("{REDACTED}@{host}"),
        None => text.to_owned(),
    }
}

/// None where the text is no URL, or could hold a password outside its place: then nothing of it may be shown.
fn redact_url(text: &str) -> Option<String> {
    let mut url = Url::parse(text).ok()?;
    // An unescaped `/`, `?` or `#` in a password ends the host early; the rest, up to the `@`, then reads as a path.
    let after_host = [Some(url.path()), url.query(), url.fragment()];
    if after_host.into_iter().flatten().any(|part| part.contains('@')) {
        return None;
    }
    let user_is_name = url.password().is_some() && !url.scheme().starts_with("http");
    if !user_is_name && !url.username().is_empty() {
        url.set_username(REDACTED).ok()?;
    }
    if url.password().is_some() {
        url.set_password(Some(REDACTED)).ok()?;
    }
    if let Some(query) = url.query() {
        let redacted = query.split('&').map(redact_parameter).collect::<Vec<_>>().join("&");
        url.set_query(Some(&redacted));
    }
    // The Redis client reads `#insecure`; no other fragment means anything to a client here.
    if url.fragment().is_some_and(|fragment| fragment != "insecure") {
        url.set_fragment(Some(REDACTED));
    }
    Some(url.into())
}

fn redact_parameter(pair: &str) -> &str {
    match pair.split_once('=') {
        Some((name, _)) if PLAIN_PARAMETERS.contains(&name) => pair,
        // The name too: a bare token in base64 ends in `=` and then reads as a name.
        _ => REDACTED,
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.redacted())
    }
}

impl JsonSchema for Address {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A URL or address. Its password and query secrets are never printed.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_secret_stays_readable() {
        for (text, shown) in [
            ("amqp://guest:guest@127.0.0.1:5672/%2f", "amqp://guest:***@127.0.0.1:5672/%2f"),
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://:hunter2@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
            ("https://hunter2@example.org/", "https://***@example.org/"),
            ("https://hunter2:@example.org/", "https://***@example.org/"),
            (
                "postgres://app:hunter2@db/x?sslmode=require&password=hunter2",
                "postgres://app:***@db/x?sslmode=require&***",
            ),
            ("https://hunter2:x-oauth@example.org/", "https://***:***@example.org/"),
            ("https://example.org/hook?hunter2", "https://example.org/hook?***"),
            ("https://example.org/hook?hunter2==", "https://example.org/hook?***"),
            ("rediss://h:6379/#insecure", "rediss://h:6379/#insecure"),
            ("https://h/#hunter2", "https://h/#***"),
            ("127.0.0.1:9092", "127.0.0.1:9092"),
            ("user:hunter2@127.0.0.1:9092", "***@127.0.0.1:9092"),
            ("orders.dlq", "orders.dlq"),
        ] {
            assert_eq!(redact(text), shown, "{text}");
        }
    }

    #[test]
    fn the_path_of_a_hook_is_not_shown() {
        for (text, shown) in [
            ("https://hooks.example/services/T0/hunter2", "https://hooks.example/***"),
            (
                "https://u:hunter2@hooks.example:8443/hunter2?hunter2#hunter2",
                "https://***:***@hooks.example:8443/***?***#***",
            ),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/"),
        ] {
            assert_eq!(HookUrl(Address::from(text.to_owned())).redacted(), shown);
        }
    }

    #[test]
    fn a_password_that_breaks_the_url_is_not_shown() {
        for text in [
            "amqp://u:hunter/2hunter2@h/",
            "amqp://u:1/hunter2@h/",
            "amqp://u:1?hunter2@h",
            "http://[hunter2",
        ] {
            assert!(!redact(text).contains("hunter"), "{text} became {}", redact(text));
        }
    }

    proptest! {
        #[test]
        fn no_password_shows_whatever_its_characters(noise in "[!-~]{0,12}", scheme in "(amqp|redis|http)") {
            let password = format!("{noise}hunter2");
            for text in [
                format!("{scheme}://user:{password}@host:80/path"),
                format!("{scheme}://{password}@host/"),
                format!("{scheme}://host/?token={password}"),
                format!("{scheme}://host/?{password}"),
                format!("{scheme}://host/#{password}"),
            ] {
                prop_assert!(!redact(&text).contains("hunter2"), "{} became {}", text, redact(&text));
            }
        }
    }
}
