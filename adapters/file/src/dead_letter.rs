//! Recognises our own letters among the lines of a raw source: [`recognise`].

use memchr::memmem;
use onceward::dead_letter::{HEADER_GENERATION, HEADER_SCOPE};
use serde::de::IgnoredAny;

use crate::envelope::{self, BEGINNINGS, Envelope};

/// The letter that `line` is: an envelope with our headers, as [`FilePublisher`](crate::FilePublisher) writes them. `None` for
/// any other line. A letter that is cut off gives an error: its beginning must not be taken for a payload.
pub(crate) fn recognise(line: &[u8]) -> Option<Result<Envelope, String>> {
    let line = line.trim_ascii();
    if line.first() != Some(&b'{') {
        return None;
    }
    let names = |name: &str| memmem::find(line, name.as_bytes()).is_some();
    // The search is cheap and rules out nearly every other line.
    if !names(HEADER_GENERATION) || !names(HEADER_SCOPE) {
        return None;
    }
    match envelope::parse(line) {
        Ok(envelope) => {
            let is_ours =
                envelope.header(HEADER_GENERATION).is_some() && envelope.header(HEADER_SCOPE).is_some();
            is_ours.then_some(Ok(envelope))
        }
        Err(what) => {
            let begins = BEGINNINGS.iter().any(|beginning| line.starts_with(beginning.as_bytes()));
            let is_cut_off = serde_json::from_slice::<IgnoredAny>(line)
                .is_err_and(|error| error.is_eof() || error.is_syntax());
            (begins && is_cut_off && names("\"headers\":{"))
                .then(|| Err(format!("it begins like a dead letter of onceward, but is damaged: {what}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LETTER: &str =
        r#"{"id":"7","headers":{"onceward-scope":"billing","onceward-generation":"0"},"payload":{"id":1}}"#;

    #[test]
    fn a_letter_is_recognised_in_whatever_form_its_json_has() {
        let spaced = LETTER.replace(':', ": ").replace(',', " , ");
        let turned =
            r#" {"payload":{"id":1},"headers":{"onceward-generation":"0","onceward-scope":"billing"}}"#;
        for line in [LETTER, &spaced, turned] {
            let envelope = recognise(line.as_bytes()).unwrap().unwrap();
            assert!(envelope.payload.starts_with(b"{\"id\""), "{line}");
        }
    }

    #[test]
    fn a_letter_that_is_cut_off_is_no_payload() {
        let cut = &LETTER[..LETTER.len() - 4];
        assert!(recognise(cut.as_bytes()).unwrap().is_err());
    }

    #[test]
    fn lines_that_only_mention_our_headers_are_payloads() {
        for line in [
            r#"{"text":"onceward-scope and onceward-generation"}"#,
            r#"{"onceward-scope":"billing","onceward-generation":"0"}"#,
            r#"{"id":"1","payload":"onceward-scope onceward-generation"}"#,
            r#"{"id":"1","headers":{"onceward-scope":"billing"},"payload":1}"#,
            r#"{"id":"1","headers":{"onceward-scope":"b","onceward-generation":"0"},"payload":1,"more":1}"#,
            "onceward-scope onceward-generation",
            r#"{"text":"onceward-scope onceward-generation"#,
        ] {
            assert!(recognise(line.as_bytes()).is_none(), "{line}");
        }
    }
}
