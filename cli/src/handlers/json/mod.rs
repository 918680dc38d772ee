//! Messages and their answers as JSON, for worker processes and for batches over HTTP.

mod answer;
mod request;

pub(super) use answer::{RequestState, Said, said, trimmed};
#[cfg(any(test, fuzzing))]
pub(super) use request::request;
pub(super) use request::write;
