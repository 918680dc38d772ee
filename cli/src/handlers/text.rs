//! Escapes foreign bytes for error texts and log lines.

/// `bytes` as one printable line of at most `limit` bytes: invalid UTF-8 becomes `�`, control characters and characters that
/// reorder or break lines are escaped, and a truncation is marked with `…`.
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

/// True for characters that could act on a terminal, forge a line or reverse text in a log.
pub(crate) fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text of an IO error, such as "No such file or directory", without its number.
pub(crate) fn io_words(error: &std::io::Error) -> String {
    let words = error.to_string();
    match words.rfind(" (os error ") {
        Some(end) if error.raw_os_error().is_some() => words[..end].to_owned(),
        _ => words,
    }
}

#[cfg(test)]
mod tests {
    use super::{io_words, printable};

    #[test]
    fn an_io_error_has_the_text_of_the_system() {
        let missing = std::fs::File::open("/no/such/file").unwrap_err();
        assert_eq!(io_words(&missing), "No such file or directory");
        assert_eq!(io_words(&std::io::Error::other("disk (os error 5)")), "disk (os error 5)");
    }

    #[test]
    fn escapes_terminal_sequences() {
        assert_eq!(printable(b"a\x1b[31mred\r\n\0", 100), "a\\u{1b}[31mred\\r\\n\\u{0}");
        assert_eq!(printable("x\u{202e}y\u{2028}".as_bytes(), 100), "x\\u{202e}y\\u{2028}");
    }

    #[test]
    fn keeps_text_and_marks_invalid_utf8() {
        assert_eq!(printable("Zürich\t\"ok\"".as_bytes(), 100), "Zürich\\t\"ok\"");
        assert_eq!(printable(b"\xff\xfeend", 100), "\u{fffd}\u{fffd}end");
    }

    #[test]
    fn is_truncated_at_a_character_and_marked() {
        assert_eq!(printable("aüü".as_bytes(), 4), "aü…");
        assert_eq!(printable(b"ab\x1b", 5), "ab…");
        assert_eq!(printable(b"abc", 3), "abc");
    }
}
