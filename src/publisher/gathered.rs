//! A publisher shared by many callers that send one message each: [`GatheredPublisher`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Outgoing, Publisher};
use crate::coalesce::{CALLS_IN_FLIGHT, Coalescer, Terms};
use crate::error::Error;

/// Gathers what callers publish at the same time into batches of the publisher it wraps: while a batch is under way, the
/// next one gathers. There is no linger, so a lone message waits for nothing.
///
/// Two batches may be under way at once. Messages of one caller that have to stay in order are published one after the
/// other, each after the last one's confirm.
#[derive(Debug)]
pub struct GatheredPublisher {
    gather: Coalescer<Outgoing, ()>,
}

impl GatheredPublisher {
    /// Batches of about `max_batch` messages, each of which may take up to `limit`; after that its outcome is unknown. The
    /// task that sends them is started at once, in the current runtime, and ends with this value.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(publisher: Arc<dyn Publisher>, max_batch: usize, limit: Duration) -> Self {
        let terms = Terms {
            operation: "publish",
            max_batch,
            limit,
            calls_in_flight: CALLS_IN_FLIGHT,
            clashes: |_, _| false,
        };
        let gather = Coalescer::start(terms, move |batch: Vec<Outgoing>| {
            let publisher = Arc::clone(&publisher);
            async move { publisher.publish(&batch).await }
        });
        Self { gather }
    }
}

#[async_trait]
impl Publisher for GatheredPublisher {
    /// # Cancel safety
    /// The messages of a dropped call are published nevertheless.
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        self.gather.send(batch.to_vec()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::join_all;

    use super::*;
    use crate::error::ErrorKind;

    /// Refuses every message whose id is "ill", and notes how many came at once.
    #[derive(Default)]
    struct Slow(Mutex<Vec<usize>>);

    #[async_trait]
    impl Publisher for Slow {
        async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
            self.0.lock().unwrap().push(batch.len());
            tokio::time::sleep(Duration::from_secs(1)).await;
            let refused = || Error::new(ErrorKind::Unavailable, "publish", "refused");
            batch.iter().map(|message| if message.id == "ill" { Err(refused()) } else { Ok(()) }).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_while_batches_are_under_way_goes_out_together_and_each_caller_gets_its_own_outcome() {
        let slow = Arc::new(Slow::default());
        let publisher = GatheredPublisher::new(slow.clone(), 64, Duration::from_secs(9));
        let publish = async |number: usize| {
            // After the first two, which are on their way by then.
            tokio::time::sleep(Duration::from_millis(10 * number as u64)).await;
            let id = if number % 10 == 7 { "ill".to_owned() } else { number.to_string() };
            publisher.publish(&[Outgoing { id, ..Outgoing::default() }]).await.remove(0)
        };
        let outcomes = join_all((0..60).map(publish)).await;
        for (number, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.is_err(), number % 10 == 7, "{number}");
        }
        assert_eq!(*slow.0.lock().unwrap(), [1, 1, 58]);
    }
}
