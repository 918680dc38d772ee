//! Completes a call whose caller has been cancelled: [`DetachOnDrop`].

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

/// A future that, once polled, runs to completion: if it is dropped earlier, it continues as a task.
///
/// In the usual case, in which it completes in time, no task is spawned.
pub(crate) struct DetachOnDrop<T: Send + 'static> {
    future: Option<BoxFuture<'static, T>>,
    is_started: bool,
}

impl<T: Send + 'static> DetachOnDrop<T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self { future: Some(future.boxed()), is_started: false }
    }
}

impl<T: Send + 'static> Future for DetachOnDrop<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.is_started = true;
        let Some(future) = &mut self.future else { return Poll::Pending };
        let polled = future.poll_unpin(context);
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for DetachOnDrop<T> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take()
            && self.is_started
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_dropped_call_continues_and_one_that_never_started_does_not() {
        let (answer, answered) = oneshot::channel::<()>();
        let (done, is_done) = oneshot::channel();
        let mut call = Box::pin(DetachOnDrop::new(async move {
            let _ = answered.await;
            let _ = done.send(());
        }));
        assert!(futures_util::poll!(&mut call).is_pending());
        drop(call);
        answer.send(()).unwrap();
        is_done.await.unwrap();

        let (done, is_done) = oneshot::channel();
        drop(DetachOnDrop::new(async move { done.send(()) }));
        assert!(is_done.await.is_err());
    }
}
