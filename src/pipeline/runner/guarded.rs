//! Runs user code with a timeout, and turns its panics into failures.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until};

use crate::active_claim::ActiveClaim;
use crate::failpoints::{self, Step};
use crate::handler::HandlerError;
use crate::pipeline::context::Context;
use crate::pipeline::measure::RoundTime;
use crate::telemetry::Counter;

/// Runs `run`: a panic becomes a failure; when the handler timeout has passed the run is asked to stop, and dropped if
/// it does not within the grace. Only then is the claim given up: a run that goes on would be an effect without a claim.
pub(super) async fn guarded<R, T, F: Future<Output = Result<T, HandlerError>>>(
    context: &Context<R>,
    claim: &ActiveClaim,
    time: &RoundTime,
    run: impl FnOnce() -> F,
) -> Result<T, HandlerError> {
    failpoints::hit(Step::HandlerStart);
    let started = context.measurer.run_started(time);
    let limit = context.config.handler_timeout;
    // The output stays here: each future around the run would move it once more.
    let mut output = None;
    let (ended, overran, at_once) = {
        let run = AssertUnwindSafe(async { output = Some(run().await) });
        let mut run = pin!(OptionFuture::from(Some(run.catch_unwind())));
        let Within { output: mut ended, at_once } = within(limit, time.now, run.as_mut()).await;
        let overran = ended.is_none();
        if overran {
            claim.cancel();
            context.count(Counter::Timeouts, 1);
            // In a place of its own: each run would be as large.
            ended = Box::pin(tokio::time::timeout(context.config.cancel_grace, run.as_mut())).await.ok();
        }
        // The future goes before the claim does. A panic of its destructors stays here and changes nothing: how the run
        // ended is known by now.
        let _ = catch_unwind(AssertUnwindSafe(|| run.set(OptionFuture::default())));
        (ended.flatten(), overran, at_once)
    };
    claim.returned();
    // A failure is measured for itself: it has a histogram of its own.
    let may_share = time.may_share() && matches!(output, Some(Ok(_)));
    context.measurer.run_ended(started, claim, at_once, may_share);
    failpoints::hit(Step::EffectDone);
    match (ended, output) {
        (Some(Err(panic)), _) => {
            context.count(Counter::Panics, 1);
            Err(panicked(&*panic))
        }
        (_, None) => Err(timed_out(limit, None)),
        // What it managed to do in the grace counts: an effect that happened is an effect.
        (_, Some(Ok(output))) => Ok(output),
        (_, Some(Err(error))) if overran => Err(timed_out(limit, Some(&error))),
        (_, Some(Err(error))) => {
            context.count(Counter::Timeouts, usize::from(error.is_timed_out()));
            Err(error)
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> HandlerError {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    HandlerError::retry(format!("the handler panicked: {}", text.unwrap_or("without a text")))
}

/// How a future ended within a time.
struct Within<T> {
    /// `None`: it is pending still.
    output: Option<T>,
    /// It was ready at its first poll.
    at_once: bool,
}

/// Awaits `future` for so long after `since`. As tokio's timeout, but a timer is made only for a
/// future that is pending at its first poll, and it fires whatever of tokio's budget the future leaves.
fn within<F: Future>(
    limit: Duration,
    since: Instant,
    mut future: Pin<&mut F>,
) -> impl Future<Output = Within<F::Output>> {
    let mut timer = None;
    poll_fn(move |context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Within { output: Some(output), at_once: timer.is_none() });
        }
        let timer = timer.get_or_insert_with(|| Box::pin(unconstrained(sleep_until(since + limit))));
        timer.as_mut().poll(context).map(|()| Within { output: None, at_once: false })
    })
}

fn timed_out(limit: Duration, last: Option<&HandlerError>) -> HandlerError {
    match last {
        None => HandlerError::retry(format!("the handler did not return within {limit:?} and was dropped")),
        Some(error) => {
            let text = format!("the handler was stopped after {limit:?}: {error}");
            let timed_out = HandlerError::new(error.verdict(), text);
            if error.is_outcome_unknown() { timed_out.outcome_unknown() } else { timed_out }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_future_that_leaves_nothing_of_the_budget_of_its_task_ends_in_time() {
        let limit = Duration::from_millis(20);
        let busy = pin!(async {
            loop {
                tokio::task::coop::consume_budget().await;
            }
        });
        tokio::select! {
            biased;
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("it goes on"),
            ended = within(limit, Instant::now(), busy) => assert!(ended.output.is_none()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_counts_from_when_it_is_said_to_and_an_output_in_time_is_kept() {
        let began = Instant::now();
        let second = Duration::from_secs(1);
        tokio::time::advance(2 * second).await;
        let late = within(3 * second, began, pin!(tokio::time::sleep(2 * second))).await;
        assert_eq!((late.output, late.at_once, began.elapsed()), (None, false, 3 * second));
        let waited = within(5 * second, began, pin!(tokio::time::sleep(second))).await;
        assert_eq!((waited.output, waited.at_once), (Some(()), false));
        let ready = within(second, began, pin!(std::future::ready(7))).await;
        assert_eq!((ready.output, ready.at_once), (Some(7), true), "whatever the time");
    }
}
