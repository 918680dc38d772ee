//! Request coalescing: requests that arrive while a call is under way are sent together in the next one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::error::{Error, ErrorKind};

type Answers<T> = Vec<Result<T, Error>>;
type Chunk<Q, T> = (Vec<Q>, oneshot::Sender<Answers<T>>);

/// Hands chunks of requests to the store: a few calls in flight, each of about `max_batch` items, no linger.
/// One request alone pays one round trip; a flood pays one per batch.
#[derive(Debug)]
pub(crate) struct Coalescer<Q, T> {
    operation: &'static str,
    chunks: mpsc::UnboundedSender<Chunk<Q, T>>,
}

/// Calls in flight unless there is a reason for more.
pub(crate) const CALLS_IN_FLIGHT: usize = 2;

/// The items that are gathered, and how.
pub(crate) struct Terms<Q> {
    /// For error messages.
    pub(crate) operation: &'static str,
    /// After so many items no further chunk joins a call.
    pub(crate) max_batch: usize,
    /// How long a call may take before its outcome is called unknown.
    pub(crate) limit: Duration,
    /// Calls under way at once. More where one that hangs must not delay the others.
    pub(crate) calls_in_flight: usize,
    /// Whether a chunk must not join a batch: stores may assume distinct keys.
    pub(crate) clashes: fn(&[Q], &[Q]) -> bool,
}

impl<Q: Send + 'static, T: Send + 'static> Coalescer<Q, T> {
    /// Starts the task that calls the store. It ends when the gatherer is dropped.
    pub(crate) fn start<F, Fut>(terms: Terms<Q>, call: F) -> Self
    where
        F: Fn(Vec<Q>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Answers<T>> + Send + 'static,
    {
        let (chunks, waiting) = mpsc::unbounded_channel();
        let operation = terms.operation;
        tokio::spawn(run(terms, waiting, call));
        Self { operation, chunks }
    }

    /// Sends a chunk, together with what others send at the same time; one answer per item. Waiting for a turn is
    /// not bounded, the call is.
    pub(crate) async fn send(&self, chunk: Vec<Q>) -> Answers<T> {
        let mut sent = self.start_send(chunk);
        sent.answers().await
    }

    /// Sends a chunk without waiting for its answers.
    pub(crate) fn start_send(&self, chunk: Vec<Q>) -> Sent<T> {
        let (operation, count) = (self.operation, chunk.len());
        let (answer, answered) = oneshot::channel();
        // An error means that the runtime is being torn down under us: the outcome is unknown.
        let _ = self.chunks.send((chunk, answer));
        Sent { operation, count, answered }
    }
}

/// A chunk that is sent. Dropping it does not take the chunk back.
#[derive(Debug)]
pub(crate) struct Sent<T> {
    operation: &'static str,
    count: usize,
    answered: oneshot::Receiver<Answers<T>>,
}

impl<T> Sent<T> {
    /// Waits for the answers. To be called once.
    pub(crate) async fn answers(&mut self) -> Answers<T> {
        (&mut self.answered).await.unwrap_or_else(|_| {
            let ending = || Error::new(ErrorKind::Timeout, self.operation, "the program is ending");
            (0..self.count).map(|_| Err(ending())).collect()
        })
    }
}

async fn run<Q, T, F, Fut>(terms: Terms<Q>, mut waiting: mpsc::UnboundedReceiver<Chunk<Q, T>>, call: F)
where
    Q: Send + 'static,
    T: Send + 'static,
    F: Fn(Vec<Q>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answers<T>> + Send + 'static,
{
    let calls = Arc::new(Semaphore::new(terms.calls_in_flight));
    let mut left_over = None;
    while let Ok(slot) = calls.clone().acquire_owned().await {
        // The slot is free first, then what waits is taken: so that it gathers while all calls are busy.
        let first = match left_over.take() {
            Some(chunk) => Some(chunk),
            None => waiting.recv().await,
        };
        let Some((mut batch, answer)) = first else { return };
        let mut parts = vec![(batch.len(), answer)];
        // Most chunks that wait are of one item.
        let room = waiting.len().min(terms.max_batch.saturating_sub(batch.len()));
        batch.reserve_exact(room);
        parts.reserve_exact(room);
        while batch.len() < terms.max_batch
            && let Ok((chunk, answer)) = waiting.try_recv()
        {
            if (terms.clashes)(&batch, &chunk) {
                left_over = Some((chunk, answer));
                break;
            }
            parts.push((chunk.len(), answer));
            batch.extend(chunk);
        }
        let (call, limit, operation) = (call.clone(), terms.limit, terms.operation);
        tokio::spawn(async move {
            let count = batch.len();
            let mut answers = bounded(limit, operation, count, call(batch)).await.into_iter();
            drop(slot);
            for (count, answer) in parts {
                // A receiver that was dropped has no use for the answer.
                let _ = answer.send(answers.by_ref().take(count).collect());
            }
        });
    }
}

/// Waits at most `limit` for a store call; past it the outcome of every item is unknown.
pub(crate) async fn bounded<T>(
    limit: Duration,
    operation: &'static str,
    count: usize,
    call: impl Future<Output = Vec<Result<T, Error>>>,
) -> Vec<Result<T, Error>> {
    match tokio::time::timeout(limit, call).await {
        Ok(answers) if answers.len() == count => answers,
        Ok(answers) => {
            let found = answers.len();
            let error = Error::new(
                ErrorKind::Internal,
                operation,
                format!("the store gave {found} answers to {count} requests; this is a fault of the adapter"),
            );
            (0..count).map(|_| Err(error.clone())).collect()
        }
        Err(_) => {
            let error = Error::new(ErrorKind::Timeout, operation, format!("no answer within {limit:?}"));
            (0..count).map(|_| Err(error.clone())).collect()
        }
    }
}
