//! Reads lines that are to be delivered again: [`reread`].

use std::fs::File;
use std::path::Path;

use onceward::{Error, Message};

use crate::error;
use crate::file_source::incarnation::ReadAt;
use crate::message::LineDecoder;
use crate::progress::PendingRedelivery;
use crate::reader::lines::LineReader;

/// Reads lines again; `None` for one that is no longer what it was.
pub(crate) fn reread(
    path: &Path,
    file: Option<&File>,
    decoder: &LineDecoder,
    due: Vec<PendingRedelivery>,
) -> Result<Vec<(PendingRedelivery, Option<Message>)>, Error> {
    due.into_iter()
        .map(|waiting| {
            if let Some(message) = waiting.message.clone() {
                return Ok((waiting, Some(message)));
            }
            let Some(file) = file else { return Ok((waiting, None)) };
            let start = waiting.mark.start;
            let source = ReadAt { file, offset: start };
            let mut lines = LineReader::new(source, start, decoder.limit);
            let line = match lines.next().map_err(|error| error::io("read again", path, error))? {
                Some(line) => Some(line),
                None => lines.rest(),
            };
            let line = line.filter(|line| line.digest == waiting.mark.digest && line.end == waiting.mark.end);
            let message = line.map(|line| decoder.message(&line, true));
            Ok((waiting, message))
        })
        .collect()
}
