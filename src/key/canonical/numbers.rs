//! Canonical form of JSON numbers: by value, with all digits.

use super::JsonReader;

/// Every step is `None` where the text is not JSON or has no canonical form.
impl JsonReader<'_> {
    /// A number as its digits without zeros at either end, and the power of ten they are multiplied by.
    pub(super) fn number(&mut self) -> Option<()> {
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
