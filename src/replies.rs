//! Replies to messages that ask for one: [`Replies`].

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Error;
use crate::key::Key;
use crate::message::Message;

/// The header of a reply without a result: `absent`. The message is completed, and no result is known: its handler returned none,
/// as a [transactional](crate::TxHandler) one always does, or one that is larger than
/// [`max_result_bytes`](crate::PipelineConfig::max_result_bytes); or its run found the key completed by another run, whose result
/// it does not know.
pub const HEADER_RESULT: &str = "onceward-result";

/// A reply to be sent: the result of the run that completed `key`, for the sender of `message`, which that run may not have seen.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Reply<'a> {
    /// The message, which names the address of its reply and what the reply is recognised by.
    pub message: &'a Message,
    /// Its key: the same for all replies with this result. `None` for a run without a claim.
    pub key: Option<Key>,
    /// The result. `None`: no result is kept, which the reply states by [`HEADER_RESULT`].
    pub result: Option<&'a Bytes>,
}

impl fmt::Debug for Reply<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.result.map(Bytes::len);
        f.debug_struct("Reply").field("key", &self.key).field("bytes", &bytes).finish_non_exhaustive()
    }
}

/// How the publish of a reply ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Replied {
    /// The broker has confirmed it.
    Sent,
    /// The broker has not taken it, and may take it a moment later: it is sent once more after 100 ms, and is undeliverable if it is
    /// refused again.
    Refused(Error),
    /// It never arrives: there is no such address, or it is too large.
    Undeliverable(Error),
}

/// Sends replies to where messages ask for them. The adapter of a source whose messages have such an address implements it; give
/// it to [`PipelineBuilder::replies`](crate::PipelineBuilder::replies).
///
/// ```
/// use async_trait::async_trait;
/// use onceward::adapter::{Replied, Replies, Reply};
/// use onceward::{Error, Message};
///
/// /// Prints results for messages that name a recipient.
/// struct Printed;
///
/// #[async_trait]
/// impl Replies for Printed {
///     fn wanted_by(&self, message: &Message) -> bool {
///         message.header("recipient").is_some()
///     }
///
///     async fn reply(&self, replies: &[Reply<'_>]) -> Vec<Result<Replied, Error>> {
///         replies.iter().map(|reply| {
///             println!("{:?}: {:?}", reply.message.header("recipient"), reply.result);
///             Ok(Replied::Sent)
///         }).collect()
///     }
/// }
/// ```
#[async_trait]
pub trait Replies: Send + Sync + 'static {
    /// True if the message asks for a reply.
    fn wanted_by(&self, message: &Message) -> bool;

    /// Sends a batch, of messages that ask for a reply; one answer for each, in order.
    ///
    /// # Errors
    /// An error means *unknown*: the reply may have arrived, and it is sent again later.
    ///
    /// # Cancel safety
    /// A dropped call may or may not have sent any of the batch.
    async fn reply(&self, replies: &[Reply<'_>]) -> Vec<Result<Replied, Error>>;
}
