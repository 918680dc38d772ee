//! Canonical form of JSON strings: as few escapes as JSON allows.

use super::JsonReader;

/// Every step is `None` where the text is not JSON.
impl JsonReader<'_> {
    /// A string with as few escapes as JSON allows. Half of a surrogate pair has no character and stays an escape.
    pub(super) fn string(&mut self) -> Option<()> {
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
}
