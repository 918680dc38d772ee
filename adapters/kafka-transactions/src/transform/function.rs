//! The transformation of a record: [`Transform`].

use std::future::Future;

use onceward::{HandlerError, Message, Outgoing};

/// Transforms a record into the records to be produced for it.
///
/// It may run again for a record whose transaction was aborted: only the records that it returns are produced once. Any
/// `Fn(Message) -> impl Future<Output = Result<Vec<Outgoing>, HandlerError>>` is one.
pub trait Transform: Send + Sync + 'static {
    /// Returns the records for `message`; [`Outgoing::destination`] is a topic.
    ///
    /// # Errors
    /// The verdict decides whether the record is retried, in its place, or goes to the dead-letter topic.
    fn transform(&self, message: Message)
    -> impl Future<Output = Result<Vec<Outgoing>, HandlerError>> + Send;
}

impl<F, R> Transform for F
where
    F: Fn(Message) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Vec<Outgoing>, HandlerError>> + Send,
{
    fn transform(
        &self,
        message: Message,
    ) -> impl Future<Output = Result<Vec<Outgoing>, HandlerError>> + Send {
        self(message)
    }
}
