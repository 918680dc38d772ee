//! Private functions that the fuzz targets call; built for them and for tests only.

use onceward::{Message, Scope};

use super::protocol::{self, Said};

/// The request line for a message, if it can be written.
pub fn request(id: u64, scope: &Scope, message: &Message) -> Option<Vec<u8>> {
    protocol::request(id, scope, message).ok()
}

/// The kind of a line while request `id` is open.
#[derive(Debug, PartialEq, Eq)]
pub enum ProtocolLine {
    /// No answer.
    Ignored,
    /// The worker is ready.
    Ready,
    /// Success, with its result.
    Done(Option<Vec<u8>>),
    /// A failure, with its text.
    Failed(String),
    /// Meant as an answer, and why it cannot be understood.
    Wrong(String),
}

/// Reads a line of a worker.
pub fn line(id: u64, line: &[u8]) -> ProtocolLine {
    match protocol::said(id, line) {
        Said::Nothing | Said::Stray => ProtocolLine::Ignored,
        Said::Ready => ProtocolLine::Ready,
        Said::Answer(Ok(result)) => ProtocolLine::Done(result.map(|result| result.to_vec())),
        Said::Answer(Err(error)) => ProtocolLine::Failed(error.text().to_owned()),
        Said::Wrong(why) => ProtocolLine::Wrong(why),
    }
}
