//! Private functions that the fuzz targets call; built for them and for tests only.

use onceward::{Message, Scope};

use crate::handlers::json::{self, RequestState, Said};

/// The request line for a message, if it can be written.
pub fn request(id: u64, scope: &Scope, message: &Message) -> Option<Vec<u8>> {
    json::request(id, scope, message).ok()
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
    let state = |answered: u64| match answered.cmp(&id) {
        std::cmp::Ordering::Less => RequestState::Past,
        std::cmp::Ordering::Equal if id > 0 => RequestState::Open,
        _ => RequestState::Unknown,
    };
    match json::said(line, id > 0, state) {
        Said::Nothing | Said::Stray => ProtocolLine::Ignored,
        Said::Ready => ProtocolLine::Ready,
        Said::Answer(_, Ok(result)) => ProtocolLine::Done(result.map(|result| result.to_vec())),
        Said::Answer(_, Err(error)) => ProtocolLine::Failed(error.text().to_owned()),
        Said::Wrong(_, why) => ProtocolLine::Wrong(why),
    }
}
