//! Reads the standard output of a worker line by line: [`OutputLines`].

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// The result of a read.
#[derive(Debug)]
pub(super) enum OutputLine {
    /// A line, its end included.
    Whole(Vec<u8>),
    /// A line is longer than it may be.
    TooLong,
    /// The end. An incomplete line is discarded.
    End,
}

/// Reads lines of bounded length.
#[derive(Debug)]
pub(super) struct OutputLines<R> {
    from: BufReader<R>,
    limit: usize,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> OutputLines<R> {
    /// Reads lines of up to `limit` bytes.
    pub(super) fn new(from: R, limit: usize) -> Self {
        Self { from: BufReader::new(from), limit, line: Vec::new() }
    }

    /// The next line.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again, and keeps an incomplete line.
    pub(super) async fn next(&mut self) -> io::Result<OutputLine> {
        loop {
            let chunk = self.from.fill_buf().await?;
            if chunk.is_empty() {
                return Ok(OutputLine::End);
            }
            let (used, whole) = match chunk.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (chunk.len(), false),
            };
            self.line.extend_from_slice(&chunk[..used]);
            self.from.consume(used);
            if whole {
                return Ok(OutputLine::Whole(std::mem::take(&mut self.line)));
            }
            if self.line.len() > self.limit {
                return Ok(OutputLine::TooLong);
            }
        }
    }
}
