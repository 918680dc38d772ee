//! One form for all JSON texts that mean the same, so that a message that was serialised again is recognised as a copy.
//!
//! Whitespace, the order of members, escapes and the notation of numbers do not matter: `{"a": 1.0, "b": "\u00e9"}` and
//! `{"b":"é","a":1}` are one. As in RFC 8785, but numbers keep all their digits instead of becoming floating point, in which
//! large ids that differ would be equal.
//!
//! No canonical form: what is no JSON object or array (a text or a number alone is compared as bytes), objects that name a
//! member twice, more than 128 levels, and exponents beyond 64 bits.

use std::cell::RefCell;

const MOST_LEVELS: usize = 128;

/// Calls `with` with the canonical form of `text`, if that is a JSON object or array and has one.
pub(super) fn with_document<T>(text: &[u8], with: impl FnOnce(&[u8]) -> T) -> Option<T> {
    let first = text.iter().find(|byte| !is_space(**byte))?;
    if !matches!(first, b'{' | b'[') {
        return None;
    }
    with_value(text, with)
}

/// As [`with_document`], for any JSON value.
pub(super) fn with_value<T>(text: &[u8], with: impl FnOnce(&[u8]) -> T) -> Option<T> {
    thread_local! {
        static WRITER: RefCell<Buffers> = RefCell::default();
    }
    let text = std::str::from_utf8(text).ok()?;
    WRITER.with_borrow_mut(|buffers| {
        buffers.out.clear();
        buffers.members.clear();
        let mut reader = Reader { text: text.as_bytes(), at: 0, buffers };
        reader.value(0)?;
        reader.spaces();
        let whole = reader.at == reader.text.len();
        let form = whole.then(|| with(&buffers.out));
        buffers.shrink();
        form
    })
}

#[derive(Default)]
struct Buffers {
    /// The canonical form so far.
    out: Vec<u8>,
    /// The members of all objects that are open, each object's behind its parent's.
    members: Vec<Member>,
    /// For putting members in order.
    sorted: Vec<u8>,
}

/// Where a member stands in the output: its name, and its end.
#[derive(Clone, Copy)]
struct Member {
    start: usize,
    name_end: usize,
    end: usize,
}

impl Buffers {
    /// A large message must not keep its memory for ever.
    fn shrink(&mut self) {
        const KEPT: usize = 64 << 10;
        self.out.truncate(KEPT);
        self.out.shrink_to(KEPT);
        self.sorted.clear();
        self.sorted.shrink_to(KEPT);
        self.members.clear();
        self.members.shrink_to(KEPT / size_of::<Member>());
    }
}

struct Reader<'t> {
    text: &'t [u8],
    at: usize,
    buffers: &'t mut Buffers,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Every step is `None` where the text is not JSON or has no canonical form.
impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn spaces(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    /// Skips spaces and takes `byte`, if it is next.
    fn takes(&mut self, byte: u8) -> bool {
        self.spaces();
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn push(&mut self, bytes: &[u8]) {
        self.buffers.out.extend_from_slice(bytes);
    }

    fn value(&mut self, level: usize) -> Option<()> {
        if level > MOST_LEVELS {
            return None;
        }
        self.spaces();
        match self.peek()? {
            b'{' => self.object(level),
            b'[' => self.array(level),
            b'"' => self.string(),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => self.number(),
        }
    }

    fn literal(&mut self, literal: &[u8]) -> Option<()> {
        if !self.text[self.at..].starts_with(literal) {
            return None;
        }
        self.at += literal.len();
        self.push(literal);
        Some(())
    }

    fn array(&mut self, level: usize) -> Option<()> {
        self.at += 1;
        self.push(b"[");
        if !self.takes(b']') {
            loop {
                self.value(level + 1)?;
                if self.takes(b']') {
                    break;
                }
                if !self.takes(b',') {
                    return None;
                }
                self.push(b",");
            }
        }
        self.push(b"]");
        Some(())
    }

    fn object(&mut self, level: usize) -> Option<()> {
        self.at += 1;
        self.push(b"{");
        let first = self.buffers.members.len();
        let mut in_order = true;
        if !self.takes(b'}') {
            loop {
                let start = self.buffers.out.len();
                self.spaces();
                if self.peek() != Some(b'"') {
                    return None;
                }
                self.string()?;
                let name_end = self.buffers.out.len();
                if !self.takes(b':') {
                    return None;
                }
                self.push(b":");
                self.value(level + 1)?;
                let Buffers { out, members, .. } = &mut *self.buffers;
                if let Some(last) = members.get(first..).and_then(<[Member]>::last) {
                    in_order &= out[last.start..last.name_end] < out[start..name_end];
                }
                // The comma belongs to the member, so that members can change places.
                out.push(b',');
                members.push(Member { start, name_end, end: out.len() });
                if self.takes(b'}') {
                    break;
                }
                if !self.takes(b',') {
                    return None;
                }
            }
        }
        if !in_order {
            self.sort(first)?;
        }
        self.buffers.members.truncate(first);
        self.push(b"}");
        Some(())
    }

    /// Puts the members from number `first` on in the order of their names. `None`: two have the same.
    fn sort(&mut self, first: usize) -> Option<()> {
        let Buffers { out, members, sorted } = &mut *self.buffers;
        let members = &mut members[first..];
        let start = members.first()?.start;
        members.sort_unstable_by(|a, b| out[a.start..a.name_end].cmp(&out[b.start..b.name_end]));
        let named_twice =
            |pair: &[Member]| out[pair[0].start..pair[0].name_end] == out[pair[1].start..pair[1].name_end];
        if members.windows(2).any(named_twice) {
            return None;
        }
        sorted.clear();
        members.iter().for_each(|member| sorted.extend_from_slice(&out[member.start..member.end]));
        out.truncate(start);
        out.extend_from_slice(sorted);
        Some(())
    }

    /// A string with as few escapes as JSON allows. Half of a surrogate pair has no character and stays an escape.
    fn string(&mut self) -> Option<()> {
        self.at += 1;
        self.push(b"\"");
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))?;
            self.push(&rest[..plain]);
            self.at += plain + 1;
            match rest[plain] {
                b'"' => break,
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
        self.push(b"\"");
        Some(())
    }

    fn escape(&mut self) -> Option<()> {
        let byte = self.peek()?;
        self.at += 1;
        let code = match byte {
            b'"' | b'\\' | b'/' => u32::from(byte),
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => 0x0a,
            b'r' => 0x0d,
            b't' => 0x09,
            b'u' => match self.hex()? {
                high @ 0xd800..=0xdbff => self.low_half(high).unwrap_or(high),
                code => code,
            },
            _ => return None,
        };
        match char::from_u32(code) {
            Some('"') => self.push(b"\\\""),
            Some('\\') => self.push(b"\\\\"),
            Some(plain) if plain >= ' ' => self.push(plain.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => self.push(format!("\\u{code:04x}").as_bytes()),
        }
        Some(())
    }

    /// The character of a pair, if the other half follows.
    fn low_half(&mut self, high: u32) -> Option<u32> {
        if !self.text[self.at..].starts_with(b"\\u") {
            return None;
        }
        let here = self.at;
        self.at += 2;
        match self.hex() {
            Some(low @ 0xdc00..=0xdfff) => Some(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)),
            _ => {
                self.at = here;
                None
            }
        }
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |code, digit| Some(code << 4 | char::from(*digit).to_digit(16)?))
    }

    /// A number as its digits without zeros at either end, and the power of ten they are multiplied by.
    fn number(&mut self) -> Option<()> {
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        let whole = self.digits();
        if whole.is_empty() || (whole.len() > 1 && self.text[whole.start] == b'0') {
            return None;
        }
        let mut fraction = self.at..self.at;
        if self.peek() == Some(b'.') {
            self.at += 1;
            fraction = self.digits();
            if fraction.is_empty() {
                return None;
            }
        }
        let mut exponent = 0_i64;
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            let down = self.peek() == Some(b'-');
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            let digits = self.digits();
            let text = std::str::from_utf8(&self.text[digits]).ok()?;
            exponent = text.parse().ok()?;
            exponent = if down { -exponent } else { exponent };
        }
        let out = &mut self.buffers.out;
        let sign = out.len();
        out.extend_from_slice(if negative { b"-" } else { b"" });
        let start = out.len();
        out.extend_from_slice(&self.text[whole]);
        out.extend_from_slice(&self.text[fraction.clone()]);
        let zeros = out[start..].iter().take_while(|digit| **digit == b'0').count();
        out.drain(start..start + zeros);
        let digits = out.len();
        while out.len() > start && out.last() == Some(&b'0') {
            out.pop();
        }
        if out.len() == start {
            out.truncate(sign);
            out.push(b'0');
            return Some(());
        }
        let dropped = i64::try_from(digits - out.len()).ok()?;
        let power = exponent.checked_add(dropped)?.checked_sub(i64::try_from(fraction.len()).ok()?)?;
        if power != 0 {
            out.extend_from_slice(format!("e{power}").as_bytes());
        }
        Some(())
    }

    fn digits(&mut self) -> std::ops::Range<usize> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        start..self.at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn form(text: &str) -> Option<String> {
        with_value(text.as_bytes(), |form| String::from_utf8(form.to_vec()).unwrap())
    }

    #[test]
    fn texts_that_mean_the_same_have_one_form() {
        for same in [
            &[
                r#"{"id":1,"a":1,"b":2}"#,
                r#"{"b":2,"a":1,"id":1}"#,
                " { \"id\" : 1 ,\n\t\"a\":1, \"b\":2 }\r\n",
            ][..],
            &[r#"["é"]"#, r#"["\u00e9"]"#, r#"["\u00E9"]"#],
            &[r#"["😀/"]"#, r#"["\ud83d\ude00\/"]"#],
            &[r#"["\n\u0001\"\\"]"#, r#"["\u000a\u0001\u0022\u005c"]"#],
            &["[1]", "[1.0]", "[1e0]", "[10E-1]", "[0.1e+1]", "[1.000]"],
            &["[0]", "[-0]", "[0.0]", "[0e7]", "[-0.0e-3]"],
            &["[1200]", "[12e2]", "[1.2E+3]", "[120e1]"],
            &["[-0.00120]", "[-12e-4]"],
            &[
                r#"{"a":{"y":[{"d":1,"c":2}],"x":null},"":true}"#,
                r#"{"":true,"a":{"x":null,"y":[{"c":2,"d":1}]}}"#,
            ],
            &[r#"{"\u0061":1,"b":2}"#, r#"{"b":2,"a":1}"#],
            &[r#"["\ud800"]"#, r#"["\uD800"]"#],
        ] {
            let forms: Vec<_> = same.iter().map(|text| form(text)).collect();
            assert!(forms[0].is_some() && forms.iter().all(|form| *form == forms[0]), "{same:?}: {forms:?}");
        }
    }

    #[test]
    fn texts_that_mean_different_things_have_different_forms() {
        let texts = [
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":true}"#,
            r#"{"a":null}"#,
            r#"{"a":[1]}"#,
            r#"{"a":{}}"#,
            "{}",
            "[]",
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"ab":1}"#,
            "[1,2]",
            "[2,1]",
            "[12]",
            "[[1],2]",
            "[[1,2]]",
            "[-1]",
            "[10]",
            "[0.1]",
            "[1e400]",
            "[12345678901234567890]",
            "[12345678901234567891]",
            r#"[" "]"#,
            r#"["a"]"#,
            r#"["A"]"#,
            r#"["\ud800"]"#,
            r#"["\\ud800"]"#,
            r#"["\ud801"]"#,
            r#"["\u0000"]"#,
            r#"[""]"#,
        ];
        let forms: std::collections::BTreeSet<_> = texts.iter().map(|text| form(text).unwrap()).collect();
        assert_eq!(forms.len(), texts.len(), "{forms:?}");
    }

    #[test]
    fn what_is_not_json_or_can_be_read_in_two_ways_has_no_form() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for text in [
            "",
            " ",
            "{",
            "[1",
            "[1,]",
            "{,}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            "{a:1}",
            "[01]",
            "[1.]",
            "[.5]",
            "[+1]",
            "[1e]",
            "[-]",
            "[tru]",
            "[nul]",
            "[1] 2",
            "[\"\t\"]",
            r#"["\x"]"#,
            r#"["\u12"]"#,
            r#"["a]"#,
            "[NaN]",
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"\u0061":3}"#,
            "[1e99999999999999999999]",
            "\u{feff}[]",
            deep.as_str(),
        ] {
            assert_eq!(form(text), None, "{text:?}");
        }
        assert_eq!(with_value(b"[\"\xff\"]", |_| ()), None);
        for scalar in ["1", "\"a\"", "true", "pay 7"] {
            assert_eq!(with_document(scalar.as_bytes(), |_| ()), None, "{scalar}");
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            // A whole one is written as an integer may be.
            any::<f64>().prop_filter("whole", |number| number.fract() != 0.0).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    /// `value` in another spelling: members the other way round, spaces, every character of strings escaped.
    fn respelled(value: &Value) -> String {
        let string = |text: &str| {
            let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            format!("\"{units}\"")
        };
        match value {
            Value::String(text) => string(text),
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(respelled).collect();
                format!("[ {} ]", items.join(" ,\n"))
            }
            Value::Object(members) => {
                let members: Vec<_> = members
                    .iter()
                    .rev()
                    .map(|(name, value)| format!("{} : {}", string(name), respelled(value)))
                    .collect();
                format!("{{\t{} }}", members.join(", "))
            }
            Value::Number(number) if number.is_i64() => format!("{number}.0e0"),
            other => other.to_string(),
        }
    }

    proptest! {
        #[test]
        fn every_document_has_the_form_of_its_other_spellings(value in json()) {
            let (compact, pretty) = (value.to_string(), serde_json::to_string_pretty(&value).unwrap());
            let canonical = form(&compact);
            prop_assert!(canonical.is_some());
            prop_assert_eq!(&canonical, &form(&pretty));
            prop_assert_eq!(&canonical, &form(&respelled(&value)));
        }

        #[test]
        fn documents_that_differ_have_different_forms(one in json(), other in json()) {
            if one != other {
                prop_assert_ne!(form(&one.to_string()), form(&other.to_string()));
            }
        }

        #[test]
        fn nothing_panics_and_what_serde_refuses_has_no_form(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let form = with_value(&bytes, |_| ());
            prop_assert!(form.is_none() || serde_json::from_slice::<&serde_json::value::RawValue>(&bytes).is_ok());
        }

        #[test]
        fn what_looks_like_json_is_refused_where_serde_refuses_it(text in "[\\[\\]{}:, \"\\\\uae019.eE+-]{0,24}") {
            let form = with_value(text.as_bytes(), |_| ());
            let valid = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert!(form.is_none() || valid, "{}", text);
        }
    }
}
