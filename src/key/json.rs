//! Finds the scalar a JSON pointer (RFC 6901) points at, without losing digits of large numbers.

use serde_json::value::RawValue;

use super::KeyError;

/// True if every `~` is followed by `0` or `1`.
pub(super) fn is_pointer(pointer: &str) -> bool {
    pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']))
}

/// The scalar at `pointer`: its kind (one byte) followed by its text, so that `"1"` and `1` differ. Numbers keep the
/// digits they came with: parsing them as floating point would make different large ids equal.
pub(super) fn scalar_at(payload: &[u8], pointer: &str) -> Result<Vec<u8>, KeyError> {
    let text = value_at(payload, pointer)?.ok_or(KeyError::Missing)?;
    match text.as_bytes().first() {
        Some(b'"') => {
            let value: String = serde_json::from_str(text).map_err(not_json)?;
            if value.is_empty() { Err(KeyError::Missing) } else { Ok([b"s", value.as_bytes()].concat()) }
        }
        Some(b't' | b'f') => Ok([b"b", text.as_bytes()].concat()),
        Some(b'-' | b'0'..=b'9') => Ok([b"n", text.as_bytes()].concat()),
        _ => Err(KeyError::NotScalar),
    }
}

/// The text of the value at `pointer`, if there is one.
pub(super) fn value_at<'a>(payload: &'a [u8], pointer: &str) -> Result<Option<&'a str>, KeyError> {
    // The whole document is validated first, so that damage behind the pointer's target is noticed too.
    let whole: &RawValue = serde_json::from_slice(payload).map_err(not_json)?;
    let mut here = whole.get();
    for token in pointer.split('/').skip(1) {
        match child(here, token) {
            Some(child) => here = child,
            None => return Ok(None),
        }
    }
    Ok(Some(here))
}

/// The value of a member or item. Of members with the same name the last one counts. Other members are passed over: what
/// their names and values hold is not looked at.
fn child<'a>(parent: &'a str, token: &str) -> Option<&'a str> {
    let mut scan = Scan { text: parent, at: 1 };
    match parent.as_bytes().first()? {
        b'{' => {
            let name = token.replace("~1", "/").replace("~0", "~");
            let mut found = None;
            while let Some(member) = scan.next_value() {
                scan.skip(b':');
                let value = scan.next_value()?;
                if is_string(member, &name) {
                    found = Some(value);
                }
            }
            found
        }
        b'[' => {
            let leading_zero = token.len() > 1 && token.starts_with('0');
            let index = token.parse::<usize>().ok().filter(|_| !leading_zero)?;
            std::iter::from_fn(|| scan.next_value()).nth(index)
        }
        _ => None,
    }
}

/// Whether the JSON string `quoted` is `text`. One that has no text (half of a surrogate pair) is none.
fn is_string(quoted: &str, text: &str) -> bool {
    if quoted.contains('\\') {
        return serde_json::from_str::<String>(quoted).is_ok_and(|name| name == text);
    }
    quoted.get(1..quoted.len() - 1) == Some(text)
}

/// Passes over the values of an object or array that is known to be valid.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn skip(&mut self, separator: u8) {
        let skipped = |byte: &u8| byte.is_ascii_whitespace() || *byte == separator;
        self.at += self.text.as_bytes()[self.at..].iter().take_while(|byte| skipped(byte)).count();
    }

    /// The next name, value or item; `None` at the end.
    fn next_value(&mut self) -> Option<&'a str> {
        self.skip(b',');
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => break,
                _ => self.at += 1,
            }
            if depth == 0 && matches!(byte, b'"' | b'}' | b']') {
                break;
            }
        }
        (self.at > start).then(|| &self.text[start..self.at])
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            self.at += if *byte == b'\\' { 2 } else { 1 };
            if *byte == b'"' {
                return;
            }
        }
    }
}

fn not_json(error: serde_json::Error) -> KeyError {
    // serde_json's syntax errors name line and column, not the text found there.
    KeyError::NotJson {
        what: format!("{} at line {} column {}", category(&error), error.line(), error.column()),
    }
}

fn category(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        _ => "wrong syntax",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(payload: &str, pointer: &str) -> Result<String, KeyError> {
        scalar_at(payload.as_bytes(), pointer).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn what_stands_beside_the_way_to_the_value_is_no_obstacle() {
        for payload in [
            r#"{"id":20,"\ud800":1}"#,
            r#"{"\ud800":{"id":3},"id":20}"#,
            r#"{"x":"\ud800","id":20}"#,
            r#"{"x":["]","}",{"id":4}],"y":"\"id\":5","\u0069d":20}"#,
            " { \"\" : { } , \"id\"\t:\n20 } ",
            r#"{"id":1,"id":20}"#,
        ] {
            assert_eq!(key(payload, "/id").as_deref(), Ok("n20"), "{payload}");
        }
        assert_eq!(key(r#"{"a":[[],{"b":"x"},true]}"#, "/a/1/b").as_deref(), Ok("sx"));
        assert_eq!(key(r#"{"a":[[],{"b":"x"},true]}"#, "/a/2").as_deref(), Ok("btrue"));
        assert_eq!(key(r#"{"a/b":{"~":1.50}}"#, "/a~1b/~0").as_deref(), Ok("n1.50"));
        for pointer in ["/a/3", "/a/01", "/a/x", "/b", "/a/1/b/c"] {
            assert_eq!(key(r#"{"a":[[],{"b":"x"},true]}"#, pointer), Err(KeyError::Missing), "{pointer}");
        }
        assert_eq!(key(r#"{"a":{}}"#, "/a"), Err(KeyError::NotScalar));
        assert!(matches!(key(r#"{"id":"\ud800"}"#, "/id"), Err(KeyError::NotJson { .. })));
        assert!(matches!(key(r#"{"id":1} x"#, "/id"), Err(KeyError::NotJson { .. })));
    }
}
