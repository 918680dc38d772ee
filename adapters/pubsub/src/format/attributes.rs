//! The limits of attributes, and which headers can be attributes as they are.

/// The most attributes of a message.
pub(crate) const MAX_ATTRIBUTES: usize = 100;
/// The longest name of an attribute, in bytes.
const MAX_NAME: usize = 256;
/// The longest value of an attribute, in bytes.
pub(crate) const MAX_VALUE: usize = 1024;

/// The text of a header that can be an attribute of its own.
pub(crate) fn plain_text<'v>(name: &str, value: &'v [u8]) -> Option<&'v str> {
    let text = std::str::from_utf8(value).ok()?;
    (text.len() <= MAX_VALUE && is_name(name)).then_some(text)
}

/// Pub/Sub reserves names that begin with `goog`.
fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with("goog")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pubsub_would_reject_is_not_plain() {
        assert_eq!(plain_text("a", b"text"), Some("text"));
        assert_eq!(plain_text("a", b""), Some(""));
        let long = vec![b'x'; MAX_VALUE + 1];
        assert!(plain_text("a", &long[1..]).is_some() && plain_text("a", &long).is_none());
        assert!(plain_text("googclient", b"x").is_none() && plain_text("", b"x").is_none());
        assert!(plain_text(&"n".repeat(257), b"x").is_none() && plain_text("a", b"\xff").is_none());
    }
}
