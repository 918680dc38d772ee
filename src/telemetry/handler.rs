//! Availability of a pipeline's handler: [`HandlerState`].

use std::fmt;

/// Whether a handler works, as far as its runs show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HandlerState {
    /// It does, or has not run yet.
    #[default]
    Up,
    /// It does not, for this reason. The pipeline lets single messages probe, one by one, whether it works again.
    Down(HandlerOutage),
}

/// Why a handler counts as down. Its text includes the last error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandlerOutage {
    /// How many different messages failed in a row; `None` if runs found the handler unavailable.
    pub failed_messages: Option<u32>,
    /// The handler's own text of its last error, which may hold a part of a message.
    pub last_error: String,
}

impl fmt::Display for HandlerOutage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = &self.last_error;
        match self.failed_messages {
            Some(count) => {
                write!(f, "the last {count} different messages failed in a row; the last error: {last}")
            }
            None => f.write_str(last),
        }
    }
}
