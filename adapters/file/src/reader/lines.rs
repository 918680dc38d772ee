//! Splits a byte stream into lines of any length: [`LineReader`].

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use bytes::Bytes;

use crate::file_source::signatures::BOM;
use crate::line_mark::{Digest, KEPT_BYTES};

/// The buffer size for reads from the source.
const BLOCK_BYTES: usize = 256 * 1024;

/// From this size on the buffer is handed over instead of copied: copying a small line is cheaper than allocating a buffer for
/// it, copying a large one is not.
const LARGE_BYTES: usize = 64 * 1024;

/// Bytes that the line ending, and a byte order mark before the first line, may add to the content.
const SPARE_BYTES: u64 = 5;

/// One line, without its ending.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The offset of its first byte.
    pub start: u64,
    /// The offset after its ending.
    pub end: u64,
    /// Its content; for an oversize line the first [`KEPT_BYTES`].
    pub content: Bytes,
    /// The size of its whole content in bytes.
    pub bytes: u64,
    /// The content is longer than the limit.
    pub oversize: bool,
    /// Whether it ends with a newline. Otherwise the source ended first, and the line may still grow.
    pub terminated: bool,
    /// The digest by which the line is recognised later.
    pub digest: Digest,
}

/// Reads lines that end in `\n` or `\r\n`. A byte order mark at offset 0 is not content. It never holds more than the limit (at
/// least [`KEPT_BYTES`]) of one line; the rest of a longer line is skipped.
///
/// A source may grow: after `None` the next call continues where the last one stopped, even in the middle of a line.
pub(crate) struct LineReader<R> {
    source: BufReader<R>,
    limit: u64,
    /// The offset of the line being read.
    start: u64,
    /// The offset of the next byte from the source.
    position: u64,
    /// The line so far.
    line: Vec<u8>,
    /// Set once the line exceeds the limit.
    skipped: Option<SkippedLine>,
}

/// An oversize line that is being skipped.
struct SkippedLine {
    digest_head: Bytes,
    last_byte: u8,
}

impl<R: Read> LineReader<R> {
    /// Reads `source`, whose next byte has the offset `start` and begins a line. Lines with more than `limit` bytes of content are
    /// oversize.
    pub(crate) fn new(source: R, start: u64, limit: u64) -> Self {
        Self {
            source: BufReader::with_capacity(BLOCK_BYTES, source),
            limit,
            start,
            position: start,
            line: Vec::new(),
            skipped: None,
        }
    }

    /// The offset of the next byte from the source: everything before it was read.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// True if the next line is completely in memory, so that reading it does not block.
    pub(crate) fn holds_line(&self) -> bool {
        self.source.buffer().contains(&b'\n')
    }

    /// The bytes after the last line that are in memory.
    pub(crate) fn buffered(&self) -> &[u8] {
        self.source.buffer()
    }

    /// The next line that ends with a newline; `None` if the source ends before one.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            if self.skipped.is_some() {
                return self.skip_line();
            }
            let room = self.buffer_limit() - self.line.len() as u64;
            let before = self.line.len();
            let outcome = self.source.by_ref().take(room).read_until(b'\n', &mut self.line);
            self.position += (self.line.len() - before) as u64;
            outcome?;
            if self.line.last() == Some(&b'\n') && self.line.len() > before {
                return Ok(Some(self.cut(true)));
            }
            if (self.line.len() as u64) < self.buffer_limit() {
                return Ok(None);
            }
            let last_byte = self.line.last().copied().unwrap_or_default();
            let digest_head = Bytes::copy_from_slice(&self.line[..KEPT_BYTES]);
            self.line = Vec::new();
            self.skipped = Some(SkippedLine { digest_head, last_byte });
        }
    }

    /// The incomplete line at the end of the source; `None` if the source ended with a newline.
    pub(crate) fn rest(&mut self) -> Option<Line> {
        if self.position == self.start {
            return None;
        }
        match self.skipped.take() {
            Some(past) => Some(self.oversize(past, 0, false)),
            None => Some(self.cut(false)),
        }
    }

    fn buffer_limit(&self) -> u64 {
        self.limit.max(KEPT_BYTES as u64).saturating_add(SPARE_BYTES)
    }

    fn skip_line(&mut self) -> io::Result<Option<Line>> {
        while let Some(past) = &mut self.skipped {
            let block = match self.source.fill_buf() {
                Ok(block) => block,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let Some(&last) = block.last() else { return Ok(None) };
            if !block.contains(&b'\n') {
                past.last_byte = last;
                let read = block.len();
                self.source.consume(read);
                self.position += read as u64;
                continue;
            }
            let at = block.iter().position(|byte| *byte == b'\n').unwrap_or_default();
            if at > 0 {
                past.last_byte = block[at - 1];
            }
            self.source.consume(at + 1);
            self.position += at as u64 + 1;
            break;
        }
        Ok(self.skipped.take().map(|past| {
            let ending = if past.last_byte == b'\r' { 2 } else { 1 };
            self.oversize(past, ending, true)
        }))
    }

    /// The skipped oversize line, up to the current position.
    fn oversize(&mut self, past: SkippedLine, ending: u64, terminated: bool) -> Line {
        let (start, end) = (self.start, self.position);
        self.start = end;
        let mark = mark_bytes(start, &past.digest_head);
        Line {
            start,
            end,
            digest: Digest::of(end - start, &past.digest_head),
            content: past.digest_head.slice(mark..),
            bytes: end - start - ending - mark as u64,
            oversize: true,
            terminated,
        }
    }

    /// The line in the buffer, up to the current position.
    fn cut(&mut self, terminated: bool) -> Line {
        let (start, end) = (self.start, self.position);
        self.start = end;
        let digest = Digest::of(end - start, &self.line);
        let mark = mark_bytes(start, &self.line);
        let content = match &self.line[mark..] {
            [content @ .., b'\r', b'\n'] | [content @ .., b'\n'] => content.len(),
            content => content.len(),
        };
        let bytes = content as u64;
        let oversize = bytes > self.limit;
        let kept = if oversize { content.min(KEPT_BYTES) } else { content };
        let content = if kept < LARGE_BYTES {
            let copy = Bytes::copy_from_slice(&self.line[mark..mark + kept]);
            if self.line.capacity() > LARGE_BYTES {
                self.line = Vec::new();
            }
            copy
        } else {
            let mut own = std::mem::take(&mut self.line);
            own.truncate(mark + kept);
            own.shrink_to_fit();
            Bytes::from(own).slice(mark..)
        };
        self.line.clear();
        Line { start, end, content, bytes, oversize, terminated, digest }
    }
}

/// The size of the byte order mark before a line that begins at `start`.
fn mark_bytes(start: u64, line: &[u8]) -> usize {
    if start == 0 && line.starts_with(BOM) { BOM.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    fn all(reader: &mut LineReader<impl Read>) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(line) = reader.next().unwrap() {
            lines.push(line);
        }
        lines.extend(reader.rest());
        lines
    }

    fn contents(text: &[u8]) -> Vec<Vec<u8>> {
        all(&mut LineReader::new(text, 0, 1 << 20)).iter().map(|line| line.content.to_vec()).collect()
    }

    #[test]
    fn both_line_endings_are_stripped_once() {
        assert_eq!(contents(b"a\nb\r\n\r\r\n\n\r\nc\r"), [&b"a"[..], b"b", b"\r", b"", b"", b"c\r"]);
        assert!(contents(b"").is_empty());
    }

    #[test]
    fn a_byte_order_mark_at_the_beginning_is_no_content_and_counts_in_the_offsets() {
        for (text, content, end) in [
            ("\u{feff}{}\nb\n", "{}", 6),
            ("\u{feff}\r\nb\n", "", 5),
            ("\u{feff}\u{feff}a\nb\n", "\u{feff}a", 8),
        ] {
            let lines = all(&mut LineReader::new(text.as_bytes(), 0, 1 << 20));
            assert_eq!((&lines[0].content[..], lines[0].bytes), (content.as_bytes(), content.len() as u64));
            assert_eq!((lines[0].start, lines[0].end, lines[1].start), (0, end, end));
            assert_eq!(lines[0].digest, Digest::of(end, &text.as_bytes()[..end as usize]));
        }
        let lines = all(&mut LineReader::new("\u{feff}a\n".as_bytes(), 7, 1 << 20));
        assert_eq!(lines[0].bytes, 4, "anywhere else it is content");
        for (size, oversize) in [(2000, false), (2001, true), (90_000, true)] {
            let text = format!("\u{feff}{}\nnext\n", "x".repeat(size));
            let lines = all(&mut LineReader::new(text.as_bytes(), 0, 2000));
            assert_eq!(
                (lines[0].oversize, lines[0].bytes, lines[0].content[0]),
                (oversize, size as u64, b'x'),
                "{size}"
            );
            assert_eq!(&lines[1].content[..], b"next");
        }
        let large = format!("\u{feff}{}\n", "x".repeat(LARGE_BYTES));
        let lines = all(&mut LineReader::new(large.as_bytes(), 0, 1 << 20));
        assert_eq!((lines[0].content.len(), lines[0].content[0]), (LARGE_BYTES, b'x'));
    }

    #[test]
    fn offsets_cover_the_stream_without_a_gap() {
        let lines = all(&mut LineReader::new(&b"one\r\ntwo\n\nend"[..], 100, 1 << 20));
        let spans: Vec<_> = lines.iter().map(|line| (line.start, line.end, line.terminated)).collect();
        assert_eq!(spans, [(100, 105, true), (105, 109, true), (109, 110, true), (110, 113, false)]);
    }

    #[test]
    fn a_line_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
        for ending in ["\n", "\r\n"] {
            for (size, oversize) in [(2000, false), (2001, true), (2002, true), (2003, true), (900_000, true)]
            {
                let text = format!("{}{ending}next{ending}", "x".repeat(size));
                let lines = all(&mut LineReader::new(text.as_bytes(), 0, 2000));
                assert_eq!(lines.len(), 2, "{size}");
                assert_eq!(lines[0].oversize, oversize, "{size} {ending:?}");
                assert_eq!(lines[0].bytes, size as u64, "{size} {ending:?}");
                assert_eq!(lines[0].content.len(), if oversize { KEPT_BYTES } else { size });
                assert_eq!(&lines[1].content[..], b"next");
                assert_eq!(lines[1].end, text.len() as u64);
            }
        }
    }

    #[test]
    fn a_limit_below_what_is_kept_still_marks_the_line() {
        let lines = all(&mut LineReader::new(&b"0123456789\n01234\n"[..], 0, 5));
        assert!(lines[0].oversize && !lines[1].oversize);
        assert_eq!(&lines[0].content[..], b"0123456789");
    }

    #[test]
    fn an_oversize_line_without_an_end_is_the_rest() {
        let text = vec![b'x'; 5000];
        let lines = all(&mut LineReader::new(&text[..], 0, 2000));
        assert_eq!((lines.len(), lines[0].bytes, lines[0].terminated), (1, 5000, false));
    }

    #[test]
    fn a_line_that_is_read_past_is_not_held() {
        let source = io::repeat(b'x').take(40_000_000).chain(&b"\nnext\n"[..]);
        let mut reader = LineReader::new(source, 0, 100_000);
        let line = reader.next().unwrap().unwrap();
        assert_eq!((line.bytes, line.oversize, reader.line.capacity()), (40_000_000, true, 0));
        assert_eq!(&reader.next().unwrap().unwrap().content[..], b"next");
    }

    /// Returns the data that the test pushes, then reports the end until more is pushed.
    #[derive(Clone, Default)]
    struct Growing(Arc<Mutex<VecDeque<u8>>>);

    impl Read for Growing {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.lock().unwrap().read(into)
        }
    }

    #[test]
    fn a_growing_line_is_put_together() {
        let source = Growing::default();
        let mut reader = LineReader::new(source.clone(), 0, 2000);
        source.0.lock().unwrap().extend(b"be");
        assert_eq!(reader.next().unwrap(), None);
        source.0.lock().unwrap().extend(b"gun\nnext");
        assert_eq!(&reader.next().unwrap().unwrap().content[..], b"begun");
        assert_eq!(reader.next().unwrap(), None);
        source.0.lock().unwrap().extend([b'y'; 3000]);
        assert_eq!(reader.next().unwrap(), None);
        source.0.lock().unwrap().extend(b"\n");
        let line = reader.next().unwrap().unwrap();
        assert_eq!((line.start, line.bytes, line.oversize), (6, 3004, true));
    }

    proptest! {
        #[test]
        fn lines_are_those_of_split(text in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..400)) {
            let mut expected: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
            let last = expected.pop().unwrap_or_default();
            let mut expected: Vec<Vec<u8>> =
                expected.into_iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec()).collect();
            if !last.is_empty() {
                expected.push(last.to_vec());
            }
            prop_assume!(!text.starts_with(BOM));
            prop_assert_eq!(contents(&text), expected);
        }

        #[test]
        fn the_limit_does_not_move_the_offsets(
            sizes in prop::collection::vec(0_usize..4000, 1..12),
            limit in 1_u64..4000,
        ) {
            let text: String = sizes.iter().map(|size| "x".repeat(*size) + "\n").collect();
            let whole = all(&mut LineReader::new(text.as_bytes(), 0, 1 << 20));
            let limited = all(&mut LineReader::new(text.as_bytes(), 0, limit));
            prop_assert_eq!(whole.len(), limited.len());
            for (one, other) in whole.iter().zip(&limited) {
                prop_assert_eq!((one.start, one.end, one.bytes, one.digest), (other.start, other.end, other.bytes, other.digest));
                prop_assert_eq!(other.oversize, one.bytes > limit);
            }
        }
    }
}
