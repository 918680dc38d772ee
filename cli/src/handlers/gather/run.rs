//! One message on its way through a call that it may share with others: [`GatheredRun`].

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use onceward::{Cancellation, HandlerError, Message};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The result of a run.
pub(in crate::handlers) type Asked = Result<Option<Bytes>, HandlerError>;

/// What became of a run.
#[derive(Debug)]
pub(in crate::handlers) enum RunReply {
    /// It has ended.
    Ended(Asked),
    /// Nothing of it was sent: it is to be passed on once more.
    Unsent,
}

/// A message that waits for its call, or for its answer.
pub(in crate::handlers) struct GatheredRun {
    /// `None` once its request is made.
    pub(in crate::handlers) message: Option<Message>,
    /// Identifies the message among the suspects.
    pub(in crate::handlers) mark: u64,
    pub(in crate::handlers) cancellation: Cancellation,
    /// Fires when the future of the run has been dropped.
    pub(in crate::handlers) dropped: CancellationToken,
    pub(in crate::handlers) reply: oneshot::Sender<RunReply>,
    /// What its call occupies, kept until the runs of the same call have ended.
    pub(in crate::handlers) seat: Option<Arc<dyn Any + Send + Sync>>,
}

/// Why a run is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::handlers) enum StopReason {
    /// The pipeline asks for it.
    Cancelled,
    /// Its time limit has passed.
    Late,
    /// Its future was dropped, and the claim with it.
    Dropped,
}

impl GatheredRun {
    /// A run of `message`, and where its reply arrives. `mark` identifies it among the [suspects](crate::handlers::suspects), and
    /// `dropped` is to fire when its future is dropped.
    pub(in crate::handlers) fn of(
        message: &Message,
        mark: u64,
        dropped: &CancellationToken,
    ) -> (Self, oneshot::Receiver<RunReply>) {
        let (reply, receiver) = oneshot::channel();
        let (cancellation, dropped) = (message.cancellation(), dropped.clone());
        let run = Self { message: Some(message.clone()), mark, cancellation, dropped, reply, seat: None };
        (run, receiver)
    }

    /// True if it should not begin.
    pub(in crate::handlers) fn is_stopped(&self) -> bool {
        self.cancellation.is_cancelled() || self.dropped.is_cancelled()
    }

    pub(in crate::handlers) fn end(self, answer: Asked) {
        // A run that was dropped has no use for the answer.
        let _ = self.reply.send(RunReply::Ended(answer));
    }

    /// Returns it, to be passed on once more.
    pub(in crate::handlers) fn give_back(self) {
        let _ = self.reply.send(RunReply::Unsent);
    }

    /// Waits until the run should stop.
    pub(in crate::handlers) fn stopped(&self, id: u64) -> BoxFuture<'static, (u64, StopReason)> {
        let (cancellation, dropped) = (self.cancellation.clone(), self.dropped.clone());
        Box::pin(async move {
            tokio::select! {
                biased;
                () = dropped.cancelled() => (id, StopReason::Dropped),
                () = cancellation.cancelled() => (id, StopReason::Cancelled),
            }
        })
    }

    /// Waits until the future of the run is dropped.
    pub(in crate::handlers) fn gone(&self, id: u64) -> BoxFuture<'static, (u64, StopReason)> {
        let dropped = self.dropped.clone();
        Box::pin(async move {
            dropped.cancelled().await;
            (id, StopReason::Dropped)
        })
    }
}
