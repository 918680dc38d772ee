//! Trace context of a message (W3C Trace Context), passed on only if valid.

use onceward::Message;

pub(super) const PARENT: &str = "traceparent";
pub(super) const STATE: &str = "tracestate";

/// The longest `tracestate` that a receiver must accept, and its most members.
const STATE_BYTES: usize = 512;
const STATE_MEMBERS: usize = 32;

/// The trace context of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trace<'a> {
    pub(super) parent: Option<&'a str>,
    /// Present only with a parent.
    pub(super) state: Option<&'a str>,
}

/// The first of each header, if its form is valid.
pub(super) fn of(message: &Message) -> Trace<'_> {
    let first = |name: &str| {
        let mut values = message.headers().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        values.next().and_then(|(_, value)| std::str::from_utf8(value).ok())
    };
    let Some(parent) = first(PARENT).filter(|parent| is_parent(parent)) else { return Trace::default() };
    Trace { parent: Some(parent), state: first(STATE).filter(|state| is_state(state)) }
}

/// `00-<32 hex digits>-<16>-<2>`, neither id all zeros. Later versions may have more fields after a hyphen; version `ff` is invalid.
fn is_parent(text: &str) -> bool {
    let mut parts = text.splitn(5, '-');
    let mut next = |digits: usize| {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        parts.next().filter(|part| part.len() == digits && part.bytes().all(is_hex))
    };
    let (Some(version), Some(trace), Some(span), Some(_)) = (next(2), next(32), next(16), next(2)) else {
        return false;
    };
    let is_some = |id: &str| id.bytes().any(|byte| byte != b'0');
    let may_be_longer = version != "00" && text.len() <= STATE_BYTES && is_printable(text);
    version != "ff" && is_some(trace) && is_some(span) && (parts.next().is_none() || may_be_longer)
}

/// `key=value` members, separated by commas.
fn is_state(text: &str) -> bool {
    let is_member = |member: &str| {
        let is_of_key =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
        let member = member.trim_matches([' ', '\t']);
        member.split_once('=').is_some_and(|(key, value)| {
            (1..=256).contains(&key.len())
                && key.bytes().all(is_of_key)
                && (1..=256).contains(&value.len())
                && !value.contains('=')
        })
    };
    let is_blank = |member: &str| member.trim_matches([' ', '\t']).is_empty();
    text.len() <= STATE_BYTES
        && is_printable(text)
        && text.split(',').count() <= STATE_MEMBERS
        && text.split(',').all(|member| is_blank(member) || is_member(member))
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT_1: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_what_the_standard_describes_is_a_parent() {
        assert!(is_parent(PARENT_1) && is_parent(&PARENT_1.replace("00-", "01-")));
        assert!(is_parent(&format!("{}-more", PARENT_1.replace("00-", "01-"))));
        for wrong in [
            "evil".to_owned(),
            String::new(),
            PARENT_1.to_ascii_uppercase(),
            format!("{PARENT_1}-more"),
            format!("{PARENT_1} "),
            PARENT_1.replace("00-0", "ff-0"),
            PARENT_1.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            PARENT_1.replace("b7ad6b7169203331", &"0".repeat(16)),
            PARENT_1.replace("b7ad", "b7a"),
            PARENT_1.replace("b7ad", "b7ag"),
            format!("{}-{}", PARENT_1.replace("00-", "01-"), "x".repeat(500)),
        ] {
            assert!(!is_parent(&wrong), "{wrong}");
        }
    }

    #[test]
    fn only_what_the_standard_describes_is_a_state() {
        for right in ["a=1", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "t@v=x y, b=2", "a=1,,b=2"] {
            assert!(is_state(right), "{right}");
        }
        for wrong in ["evil", "a=", "=1", "A=1", "a=1=2", "a=\n", &format!("a={}", "x".repeat(600))] {
            assert!(!is_state(wrong), "{wrong}");
        }
        assert!(!is_state(&"a=1,".repeat(40)));
    }

    #[test]
    fn the_first_of_each_counts_and_a_state_needs_a_parent() {
        let message =
            Message::builder("").header("TraceState", "a=1").header("TraceParent", PARENT_1).build();
        assert_eq!(of(&message), Trace { parent: Some(PARENT_1), state: Some("a=1") });
        let forged = Message::builder("").header("traceparent", "evil").header("traceparent", PARENT_1);
        assert_eq!(of(&forged.header("tracestate", "a=1").build()), Trace::default());
    }
}
