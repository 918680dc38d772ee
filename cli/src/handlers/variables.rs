//! Environment variables of a message for an exec handler.

use std::collections::HashSet;

use onceward::{Message, Scope};

use super::headers::{HeaderBudget, base64};
use super::token::claim_token;

const HEADER: &str = "ONCEWARD_HEADER_";
/// The suffix of the name of a value in Base64.
const MARKER: &str = "_BASE64";

/// Names that are set for some messages only.
const SOMETIMES: [&str; 7] = [
    "ONCEWARD_KEY",
    "ONCEWARD_TOKEN",
    "ONCEWARD_MESSAGE_ID",
    "ONCEWARD_MESSAGE_ID_BASE64",
    "ONCEWARD_ORIGIN",
    "ONCEWARD_HEADERS_SKIPPED",
    "ONCEWARD_HEADER_",
];

/// The variables of `message`: `ONCEWARD_SCOPE`, `_ATTEMPT`, `_FENCE`, `_GENERATION` always; `_KEY`, `_TOKEN` (of
/// the claim: a capability), `_MESSAGE_ID` and `_ORIGIN` if the message has one; and each header as
/// `ONCEWARD_HEADER_<NAME>`, its name in capitals with `_` for everything but letters and digits.
///
/// A value that is not UTF-8, or contains a NUL byte, is passed in Base64 under the same name with the suffix `_BASE64`; so is
/// the value of a header whose own name has that suffix, to avoid ambiguity. Of headers with the same variable name the
/// first is passed. At most 128 headers, 8 KiB each and 64 KiB in total are passed, so that no message prevents the process
/// from starting; `ONCEWARD_HEADERS_SKIPPED` is the number of omitted headers.
pub(super) fn variables(scope: &Scope, message: &Message) -> Vec<(String, String)> {
    let mut budget = HeaderBudget { count: 128, name: 128, value: 8 * 1024, total: 64 * 1024, skipped: 0 };
    let mut variables = vec![
        ("ONCEWARD_SCOPE".to_owned(), scope.to_string()),
        ("ONCEWARD_ATTEMPT".to_owned(), message.attempt().to_string()),
        ("ONCEWARD_FENCE".to_owned(), message.fence().to_string()),
        ("ONCEWARD_GENERATION".to_owned(), message.generation().to_string()),
    ];
    if let Some(key) = message.key() {
        variables.push(("ONCEWARD_KEY".to_owned(), key.to_string()));
    }
    if let Some(token) = claim_token(message) {
        variables.push(("ONCEWARD_TOKEN".to_owned(), token));
    }
    let fits = |text: &[u8]| budget.could_hold(text.len());
    if let Some(id) = message.id().filter(|id| fits(id)) {
        variables.push(variable("ONCEWARD_MESSAGE_ID".to_owned(), id));
    }
    if let Some(origin) = message.origin().filter(|origin| fits(origin.as_bytes()) && !origin.contains('\0'))
    {
        variables.push(("ONCEWARD_ORIGIN".to_owned(), origin.to_owned()));
    }
    let mut seen = HashSet::new();
    for (name, value) in message.headers() {
        if name.is_empty() || name.len() > budget.name || !budget.could_hold(value.len()) {
            budget.skip();
            continue;
        }
        let (name, value) = variable(format!("{HEADER}{}", normalised(name)), value);
        if !seen.contains(&name) && budget.take(&name[HEADER.len()..], value.len()) {
            seen.insert(name.clone());
            variables.push((name, value));
        } else {
            budget.skip();
        }
    }
    if budget.skipped > 0 {
        variables.push(("ONCEWARD_HEADERS_SKIPPED".to_owned(), budget.skipped.to_string()));
    }
    variables
}

/// True for a variable that a handler would attribute to its message.
pub(super) fn is_message_variable(name: &str) -> bool {
    name.starts_with(HEADER) || SOMETIMES.contains(&name)
}

fn normalised(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn variable(name: String, value: &[u8]) -> (String, String) {
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains('\0') && !name.ends_with(MARKER) => (name, text.to_owned()),
        _ => (name + MARKER, base64(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: &Message) -> std::collections::HashMap<String, String> {
        let scope = Scope::parse("billing").unwrap();
        let variables = variables(&scope, message);
        let count = variables.len();
        let map: std::collections::HashMap<_, _> = variables.into_iter().collect();
        assert_eq!(map.len(), count, "a variable is set twice");
        map
    }

    #[test]
    fn header_names_become_variable_names() {
        let message = Message::builder("").header("x-Trace.id", "1").header("naïve", "2").build();
        let variables = of(&message);
        assert_eq!(variables["ONCEWARD_HEADER_X_TRACE_ID"], "1");
        assert_eq!(variables["ONCEWARD_HEADER_NA_VE"], "2");
        assert!(!variables.contains_key("ONCEWARD_HEADERS_SKIPPED"));
    }

    #[test]
    fn the_first_of_two_headers_that_become_one_name_is_passed_and_the_other_counted() {
        let message = Message::builder("").header("a-b", "first").header("A_B", "second").build();
        let variables = of(&message);
        assert_eq!(variables["ONCEWARD_HEADER_A_B"], "first");
        assert_eq!(variables["ONCEWARD_HEADERS_SKIPPED"], "1");
    }

    #[test]
    fn bytes_no_variable_can_hold_come_in_base64() {
        let message = Message::builder("")
            .header("nul", &b"a\0b"[..])
            .header("raw", &b"\xff\xfe"[..])
            .message_id(b"\0\x01")
            .build();
        let variables = of(&message);
        assert_eq!(variables["ONCEWARD_HEADER_NUL_BASE64"], "YQBi");
        assert_eq!(variables["ONCEWARD_HEADER_RAW_BASE64"], "//4=");
        assert_eq!(variables["ONCEWARD_MESSAGE_ID_BASE64"], "AAE=");
        assert!(!variables.contains_key("ONCEWARD_HEADER_NUL"));
    }

    #[test]
    fn a_producer_cannot_pose_as_our_base64() {
        let message = Message::builder("").header("x-base64", "Zm9yZ2Vk").header("x", &b"\xff"[..]).build();
        let variables = of(&message);
        assert_eq!(variables["ONCEWARD_HEADER_X_BASE64"], "/w==");
        assert_eq!(variables["ONCEWARD_HEADER_X_BASE64_BASE64"], base64(b"Zm9yZ2Vk"));
    }

    #[test]
    fn headers_are_bounded_in_number_and_size_and_never_cut() {
        let mut builder = Message::builder("").header("huge", vec![b'x'; 8 * 1024 + 1]);
        for number in 0..10_000 {
            builder = builder.header(format!("h{number}"), vec![b'x'; 1000]);
        }
        let variables = of(&builder.build());
        let headers: Vec<_> = variables.iter().filter(|(name, _)| name.starts_with(HEADER)).collect();
        assert_eq!(headers.len(), 64 * 1024 / 1002);
        assert!(headers.iter().all(|(_, value)| value.len() == 1000));
        assert_eq!(variables["ONCEWARD_HEADERS_SKIPPED"], (10_001 - headers.len()).to_string());
    }
}
