//! Header fields as the standard variables have them: [`parse`].

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

/// Fields of a text such as `name=value,name=value`, whose values are percent-encoded. What is no field is left out, as by
/// the exporters of the library.
pub(super) fn parse(text: &str) -> HeaderMap {
    let fields = text.split(',').filter_map(|field| {
        let (name, value) = field.split_once('=')?;
        let name = HeaderName::try_from(name.trim()).ok()?;
        let value: Vec<u8> = percent_decode_str(value.trim()).collect();
        let mut value = HeaderValue::try_from(value).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    });
    fields.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_never_printed() {
        let headers = parse("x-api-key=a%20b=, other = c ,nothing,=d,bad name=e,");
        assert_eq!(headers.len(), 2);
        assert!(headers["x-api-key"] == "a b=" && headers["other"] == "c");
        assert!(!format!("{headers:?}").contains("a b"), "{headers:?}");
    }
}
