//! Foreign bytes made fit for an error text or a log line.

/// `bytes` as one printable line of at most `limit` bytes and a mark: what is not UTF-8 becomes `�`, control
/// characters and those that reorder or break lines are escaped, and a cut is marked with `…`.
pub(crate) fn printable(bytes: &[u8], limit: usize) -> String {
    let mut line = String::with_capacity(bytes.len().min(limit));
    for character in String::from_utf8_lossy(bytes).chars() {
        let escaped = is_unprintable(character);
        let width = if escaped { character.escape_default().count() } else { character.len_utf8() };
        if line.len() + width > limit {
            line.push('…');
            break;
        }
        if escaped {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// A terminal escape, a forged line or a reversed text must not come out of a log as what it claims to be.
pub(crate) fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(crate) use onceward_plugin::files::io_words;

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn escapes_what_a_terminal_would_act_on() {
        assert_eq!(printable(b"a\x1b[31mred\r\n\0", 100), "a\\u{1b}[31mred\\r\\n\\u{0}");
        assert_eq!(printable("x\u{202e}y\u{2028}".as_bytes(), 100), "x\\u{202e}y\\u{2028}");
    }

    #[test]
    fn keeps_text_and_marks_what_is_no_utf8() {
        assert_eq!(printable("Zürich\t\"ok\"".as_bytes(), 100), "Zürich\\t\"ok\"");
        assert_eq!(printable(b"\xff\xfeend", 100), "\u{fffd}\u{fffd}end");
    }

    #[test]
    fn is_cut_at_a_character_and_says_so() {
        assert_eq!(printable("aüü".as_bytes(), 4), "aü…");
        assert_eq!(printable(b"ab\x1b", 5), "ab…");
        assert_eq!(printable(b"abc", 3), "abc");
    }
}
