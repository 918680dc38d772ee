//! Runs futures side by side, with as few allocations as they need: [`SideBySide`].

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::{Either, OptionFuture};
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};

/// Polls each future of `starts` once, in order, and those that were pending whenever they are woken; its items are their outputs, and
/// those of `starts` that need no future.
///
/// As a [`FuturesUnordered`] of them, except that a future that is ready at its first poll, as many handlers are, never gets there: it
/// runs in a place that the next one reuses. That saves an allocation and two copies of the future. One that is pending is polled a
/// second time at once.
pub(super) struct SideBySide<I, F> {
    starts: I,
    place: Option<Place<F>>,
    pending: FuturesUnordered<Place<F>>,
}

/// A place on the heap for a future, empty or not.
type Place<F> = Pin<Box<OptionFuture<F>>>;

impl<I: Iterator<Item = Either<F::Output, F>>, F: Future> SideBySide<I, F> {
    pub(super) fn new(starts: impl IntoIterator<IntoIter = I>) -> Self {
        Self { starts: starts.into_iter(), place: None, pending: FuturesUnordered::new() }
    }
}

impl<I: Iterator<Item = Either<F::Output, F>> + Unpin, F: Future> Stream for SideBySide<I, F> {
    type Item = F::Output;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        for start in this.starts.by_ref() {
            let future = match start {
                Either::Left(output) => return Poll::Ready(Some(output)),
                Either::Right(future) => future,
            };
            let mut place = match this.place.take() {
                Some(mut place) => {
                    place.set(OptionFuture::from(Some(future)));
                    place
                }
                None => Box::pin(OptionFuture::from(Some(future))),
            };
            match place.as_mut().poll(context) {
                Poll::Ready(output) => {
                    this.place = Some(place);
                    if output.is_some() {
                        return Poll::Ready(output);
                    }
                }
                Poll::Pending => this.pending.push(place),
            }
        }
        // Each place in there is full.
        this.pending.poll_next_unpin(context).map(Option::flatten)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_future_gives_its_output_once_those_that_wait_when_they_are_ready() {
        let polled = &AtomicUsize::new(0);
        let futures = (0..100_usize).map(|number| {
            if number % 5 == 1 {
                assert_eq!(polled.fetch_add(1, Ordering::Relaxed), number, "they start in order");
                return Either::Left(number);
            }
            Either::Right(Box::pin(async move {
                assert_eq!(polled.fetch_add(1, Ordering::Relaxed), number, "they start in order");
                if number.is_multiple_of(3) {
                    tokio::time::sleep(Duration::from_millis((300 - number) as u64)).await;
                }
                number
            }))
        });
        let outputs: Vec<usize> = SideBySide::new(futures).collect().await;
        let waits = |number: &usize| number.is_multiple_of(3) && number % 5 != 1;
        let (ready, waited) = outputs.split_at((0..100).filter(|number| !waits(number)).count());
        assert!(ready.is_sorted() && !ready.iter().any(waits), "{ready:?}");
        assert!(waited.iter().rev().is_sorted() && waited.iter().all(waits), "{waited:?}");
        assert_eq!(outputs.len(), 100);
    }

    #[tokio::test]
    async fn a_future_that_has_not_ended_is_dropped_with_the_stream() {
        let alive = std::sync::Arc::new(());
        let futures = (0..3).map(|number| {
            let alive = std::sync::Arc::clone(&alive);
            Either::Right(Box::pin(async move {
                if number != 1 {
                    std::future::pending::<()>().await;
                }
                drop(alive);
            }))
        });
        let mut stream = SideBySide::new(futures.collect::<Vec<_>>());
        assert_eq!(stream.next().await, Some(()));
        assert_eq!(std::sync::Arc::strong_count(&alive), 3, "two wait");
        drop(stream);
        assert_eq!(std::sync::Arc::strong_count(&alive), 1);
    }
}
