//! Handlers and their results: [`Handler`], [`HandlerError`].

mod error;
mod function;
mod statement;
#[cfg(feature = "testing")]
mod test_run;
#[cfg(feature = "tower")]
mod tower;
mod transactional;

use std::future::Future;

use bytes::Bytes;

#[cfg(feature = "tower")]
pub use self::tower::{ServiceHandler, tower_handler};
pub use error::{Handled, HandlerError, ResultExt, Verdict};
pub use function::{FnHandler, HandlerFn, handler, handler_fn};
pub use statement::{StatementFailure, StatementParameter};
#[cfg(feature = "testing")]
pub use test_run::TestRun;
pub use transactional::{TxFn, TxHandler, TxHandlerFn, tx_handler};

use crate::message::Message;

/// Makes the effect of a message happen. One handler serves many messages at once.
///
/// It does not settle, retry or deduplicate; the pipeline does that around it, in an order that cannot be changed.
///
/// # Cancel safety
/// A handler future is dropped when its timeout has passed, or the drain deadline. Dropping it must end the run: what
/// goes on after that (a spawned task, a child process) is an effect without a claim. Watch
/// [`Message::cancellation`] to end such things in time.
///
/// # Panics
/// A panic is caught and counts as a failed run.
pub trait Handler: Send + Sync + 'static {
    /// The result of the handler: `()`, or bytes or text to be kept with the completion.
    type Output: IntoReply;

    /// Handles one message.
    ///
    /// # Errors
    /// An error means that the effect did not happen; its [`Verdict`] decides whether to retry.
    fn handle(&self, message: Message) -> impl Future<Output = Result<Self::Output, HandlerError>> + Send;
}

/// A result that a handler may return on success.
pub trait IntoReply: Send + 'static {
    /// The bytes to keep with the completion, if any.
    fn into_reply(self) -> Option<Bytes>;
}

impl IntoReply for () {
    fn into_reply(self) -> Option<Bytes> {
        None
    }
}

impl IntoReply for Bytes {
    fn into_reply(self) -> Option<Bytes> {
        Some(self)
    }
}

impl IntoReply for Vec<u8> {
    fn into_reply(self) -> Option<Bytes> {
        Some(self.into())
    }
}

impl IntoReply for String {
    fn into_reply(self) -> Option<Bytes> {
        Some(self.into())
    }
}

impl<T: IntoReply> IntoReply for Option<T> {
    fn into_reply(self) -> Option<Bytes> {
        self.and_then(IntoReply::into_reply)
    }
}
