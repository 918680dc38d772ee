//! Calls of the store, bounded in time and repeated until their outcome is known.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::config::OnExhausted;
use super::context::Context;
use crate::coalesce::bounded;
use crate::error::{Error, ErrorKind};
use crate::failpoints::{self, Step};
use crate::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion};
use crate::telemetry::{Counter, Measure};

impl<R> Context<R> {
    /// The terms of every claim of this pipeline.
    pub(crate) fn terms(&self) -> ClaimTerms {
        let max_attempts = match self.config.policies.on_exhausted {
            OnExhausted::DeadLetter => self.config.retry.max_attempts,
            // A parked message goes on being tried.
            OnExhausted::Park => u32::MAX,
        };
        ClaimTerms { lease: self.config.lease, max_attempts, ttl: self.config.ttl }
    }

    /// Claims keys; `for_commit`: a crash of the store may forget the claims, since their completions are the guard.
    pub(crate) async fn claim(&self, batch: &[ClaimRequest], for_commit: bool) -> Vec<Result<Claim, Error>> {
        failpoints::hit(Step::ClaimSent);
        let terms = self.terms();
        let call = match for_commit {
            true => self.store.claim_for_commit(&self.scope, &terms, batch),
            false => self.store.claim(&self.scope, &terms, batch),
        };
        let call = bounded(self.config.store_timeout, "claim keys", batch.len(), call);
        let answers = self.measurer.timed(Measure::Claim, call).await;
        failpoints::hit(Step::ClaimApplied);
        self.count_errors(&answers);
        answers
    }

    /// Writes completions, gathered with those of other rounds, until each is known to be written or refused.
    pub(crate) async fn complete(&self, batch: &[CompleteRequest]) -> Vec<Result<Completion, Error>> {
        // The calls are bounded where they are made: waiting for their turn is no failure.
        self.until_known(batch, |batch| Box::pin(self.completions.send(batch))).await
    }

    /// As [`complete`](Self::complete), of a completion that was sent before; `answers` are those of that first call.
    pub(crate) async fn complete_again(
        &self,
        batch: &[CompleteRequest],
        answers: Vec<Result<Completion, Error>>,
    ) -> Vec<Result<Completion, Error>> {
        self.repeat_unknown(batch, answers, |batch| Box::pin(self.completions.send(batch))).await
    }

    /// Repeats a write, with the same owner tokens, until each item is answered: *unknown is not failed*, and only an
    /// answer about the record ends a claim. A store that refuses the call (a right or password was taken away, a table
    /// is missing) shows nothing about the record: such writes are retried as well, since a released claim would run an
    /// effect again that has happened. The error for a record that cannot be read is such an answer. Gives up only when
    /// the drain deadline has passed.
    pub(crate) async fn until_known<'s, Q: Clone, T>(
        &'s self,
        batch: &[Q],
        write: impl Fn(Vec<Q>) -> BoxFuture<'s, Vec<Result<T, Error>>>,
    ) -> Vec<Result<T, Error>> {
        let answers = write(batch.to_vec()).await;
        self.repeat_unknown(batch, answers, write).await
    }

    /// As [`until_known`](Self::until_known), after a first call with these answers.
    async fn repeat_unknown<'s, Q: Clone, T>(
        &'s self,
        batch: &[Q],
        mut answers: Vec<Result<T, Error>>,
        write: impl Fn(Vec<Q>) -> BoxFuture<'s, Vec<Result<T, Error>>>,
    ) -> Vec<Result<T, Error>> {
        let mut tries = 0;
        loop {
            let unknown: Vec<usize> =
                (0..answers.len()).filter(|at| self.is_unknown(&answers[*at])).collect();
            if unknown.is_empty() {
                return answers;
            }
            let pause = self.pause(Duration::from_millis(50), tries, Duration::from_secs(2));
            tries += 1;
            tokio::select! {
                biased;
                () = self.giving_up.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
            let again = unknown.iter().map(|at| batch[*at].clone()).collect();
            for (at, answer) in unknown.into_iter().zip(write(again).await) {
                answers[at] = answer;
            }
        }
    }

    /// True if a write that was answered like this is to be repeated.
    fn is_unknown<T>(&self, answer: &Result<T, Error>) -> bool {
        match answer {
            Err(error) if error.kind() != ErrorKind::Corrupt && !self.giving_up.is_cancelled() => {
                self.log_repeated(error);
                true
            }
            _ => false,
        }
    }

    fn log_repeated(&self, error: &Error) {
        if error.is_retryable() {
            tracing::debug!(%error, "store write failed; retrying with the same owner token");
        } else if let Some(left_out) = self.log.refused.allow(error.operation()) {
            tracing::error!(
                scope = %self.scope, ?error, left_out,
                "store write refused; retrying and keeping its claims: restore the rights, login or schema of the \
                 store"
            );
        }
    }

    /// Waits at most the store timeout for a call; past it, its outcome is unknown.
    pub(crate) async fn store_call<T>(
        &self,
        operation: &'static str,
        count: usize,
        call: impl Future<Output = Vec<Result<T, Error>>>,
    ) -> Vec<Result<T, Error>> {
        let answers = bounded(self.config.store_timeout, operation, count, call).await;
        self.count_errors(&answers);
        answers
    }

    pub(crate) fn count_errors<T>(&self, answers: &[Result<T, Error>]) {
        self.count(Counter::StoreErrors, answers.iter().filter(|answer| answer.is_err()).count());
    }
}
