//! Natural batching: while one store call is under way, what comes next gathers into the following one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::error::{Error, ErrorKind};
use crate::store::{CompleteRequest, Completion};

type Answers = Vec<Result<Completion, Error>>;

/// Hands chunks of completions to the store: at most two calls in flight, each of at most `max_batch` items, no linger.
/// One completion alone pays one round trip; a flood pays one per batch.
#[derive(Debug)]
pub(crate) struct Completions {
    chunks: mpsc::UnboundedSender<(Vec<CompleteRequest>, oneshot::Sender<Answers>)>,
}

const CALLS_IN_FLIGHT: usize = 2;

impl Completions {
    /// Starts the task that calls `complete`. It ends when the last sender is gone.
    pub(crate) fn start<F, Fut>(max_batch: usize, complete: F) -> Self
    where
        F: Fn(Vec<CompleteRequest>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Answers> + Send + 'static,
    {
        let (chunks, waiting) = mpsc::unbounded_channel();
        tokio::spawn(run(max_batch, waiting, complete));
        Self { chunks }
    }

    /// Writes a chunk of completions, together with what others write at the same time; one answer per item.
    pub(crate) async fn write(&self, chunk: Vec<CompleteRequest>) -> Answers {
        let count = chunk.len();
        let (answer, answered) = oneshot::channel();
        // Both errors mean that the runtime is being torn down under us: the outcome is unknown, nothing is acked.
        let sent = self.chunks.send((chunk, answer)).is_ok();
        match answered.await {
            Ok(answers) if sent => answers,
            _ => (0..count).map(|_| Err(gone())).collect(),
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Timeout, "complete keys", "the program is ending")
}

async fn run<F, Fut>(
    max_batch: usize,
    mut waiting: mpsc::UnboundedReceiver<(Vec<CompleteRequest>, oneshot::Sender<Answers>)>,
    complete: F,
) where
    F: Fn(Vec<CompleteRequest>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answers> + Send + 'static,
{
    let calls = Arc::new(Semaphore::new(CALLS_IN_FLIGHT));
    while let Ok(call) = calls.clone().acquire_owned().await {
        // The call is free first, then what waits is taken: so that it gathers while all calls are busy.
        let Some((mut batch, answer)) = waiting.recv().await else { return };
        let mut parts = vec![(batch.len(), answer)];
        while batch.len() < max_batch {
            let Ok((chunk, answer)) = waiting.try_recv() else { break };
            parts.push((chunk.len(), answer));
            batch.extend(chunk);
        }
        let complete = complete.clone();
        tokio::spawn(async move {
            let mut answers = complete(batch).await.into_iter();
            for (count, answer) in parts {
                // A receiver that is gone has no use for the answer.
                let _ = answer.send(answers.by_ref().take(count).collect());
            }
            drop(call);
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
            (0..count).map(|_| Err(error.replicate())).collect()
        }
        Err(_) => {
            let error = Error::new(ErrorKind::Timeout, operation, format!("no answer within {limit:?}"));
            (0..count).map(|_| Err(error.replicate())).collect()
        }
    }
}
