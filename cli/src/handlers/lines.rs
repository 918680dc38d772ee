//! Reads the standard error of a program line by line, in bounded memory.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::text::printable;

/// The most bytes of a line that are kept; the rest is discarded.
pub(super) const LINE_LIMIT: usize = 1024;

/// The last line that is not blank, shared by the reader and the reporter of a failure.
#[derive(Clone, Debug, Default)]
pub(super) struct LastLine(Arc<Mutex<String>>);

impl LastLine {
    fn set(&self, line: &str) {
        let mut last = self.0.lock();
        last.clear();
        last.push_str(line);
    }

    /// `": "` and the line, or an empty string: a suffix for an error text.
    pub(super) fn suffix(&self) -> String {
        let last = self.0.lock();
        if last.is_empty() { String::new() } else { format!(": {last}") }
    }
}

/// Reads `from` to its end, passes each line that is not blank to `each`, escaped and truncated to [`LINE_LIMIT`], and
/// stores the last one in `last`. A read error counts as the end.
///
/// # Cancel safety
/// A dropped call loses an incomplete line.
pub(super) async fn read_lines<R>(mut from: R, last: &LastLine, mut each: impl FnMut(&str))
where
    R: AsyncRead + Unpin,
{
    let mut line = Vec::new();
    let mut chunk = vec![0; 8 * 1024];
    loop {
        let read = from.read(&mut chunk).await.unwrap_or(0);
        if read == 0 {
            emit(&mut line, last, &mut each);
            return;
        }
        let mut rest = &chunk[..read];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            keep(&mut line, &rest[..end]);
            emit(&mut line, last, &mut each);
            rest = &rest[end + 1..];
        }
        keep(&mut line, rest);
    }
}

/// Keeps one byte more than the limit, so that the truncation is noticed and marked.
fn keep(line: &mut Vec<u8>, more: &[u8]) {
    let room = (LINE_LIMIT + 1).saturating_sub(line.len());
    line.extend_from_slice(&more[..more.len().min(room)]);
}

fn emit(line: &mut Vec<u8>, last: &LastLine, each: &mut impl FnMut(&str)) {
    let bytes = line.trim_ascii_end();
    if !bytes.is_empty() {
        let text = printable(bytes, LINE_LIMIT);
        last.set(&text);
        each(&text);
    }
    line.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(bytes: &[u8]) -> (Vec<String>, String) {
        let last = LastLine::default();
        let mut lines = Vec::new();
        read_lines(bytes, &last, |line| lines.push(line.to_owned())).await;
        (lines, last.suffix())
    }

    #[tokio::test]
    async fn blank_lines_do_not_replace_the_last_line() {
        let (lines, suffix) = lines_of(b"Traceback\r\n  in f\nValueError: no\n\n  \n").await;
        assert_eq!(lines, ["Traceback", "  in f", "ValueError: no"]);
        assert_eq!(suffix, ": ValueError: no");
    }

    #[tokio::test]
    async fn an_unfinished_line_counts() {
        assert_eq!(lines_of(b"a\nb").await, (vec!["a".to_owned(), "b".to_owned()], ": b".to_owned()));
        assert_eq!(lines_of(b"").await, (vec![], String::new()));
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_and_the_next_one_is_whole() {
        let mut bytes = vec![b'x'; 1_000_000];
        bytes.extend_from_slice(b"\nnext\n");
        let (lines, _) = lines_of(&bytes).await;
        assert_eq!(lines[0], format!("{}…", "x".repeat(LINE_LIMIT)));
        assert_eq!(lines[1], "next");
    }
}
