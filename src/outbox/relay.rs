//! Publishes the rows of an outbox: [`Relay`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::counts::RelayCounts;
use super::turn::RelayTurn;
use super::{OutboxStore, TakeLimits};
use crate::error::{Error, ErrorKind};
use crate::failpoints::{Step, hit};
use crate::publisher::Publisher;
use crate::retry::{Backoff, Jitter};
use crate::telemetry::RateLimited;

/// After a turn in which nothing arrived, and after an error of the outbox.
const TROUBLE: Backoff =
    Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(5), jitter: Jitter::Equal };
/// Rows may come in all the time; the broker is not asked more often than this while it fails.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// The interval between log lines about a lasting failure.
const REMINDER: Duration = Duration::from_secs(30);
/// A store may take rows from a relay that hangs: publishing must have ended long before that.
const LONGEST_PUBLISH: Duration = Duration::from_secs(20);
/// Rows removed in one call.
const CLEAN_BATCH: u32 = 1_000;

/// How a [`Relay`] works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Rows taken at once, from 1; 200 by default. See [`TakeLimits::rows`].
    pub batch: u32,
    /// Rows of one order key taken at once, from 1; 50 by default. They are published one after the other.
    pub per_key: u32,
    /// Payload bytes taken at once, at most; 16 MiB by default.
    pub bytes: u64,
    /// How long a publish may take before its outcome is unknown; 10 s by default, 20 s at most.
    pub publish_timeout: Duration,
    /// How often the outbox is polled without having been woken; 1 s by default.
    pub poll: Duration,
    /// When a row that failed is sent again. It is never given up. From 500 ms to 1 min by default.
    pub backoff: Backoff,
    /// How long published rows are kept; an hour by default.
    pub keep: Duration,
    /// How often published rows are removed; every 30 s by default.
    pub clean_every: Duration,
    /// How often waiting rows are counted, for [`RelayCounts::seen`]; every 5 s by default.
    pub look_every: Duration,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            batch: 200,
            per_key: 50,
            bytes: 16 * 1024 * 1024,
            publish_timeout: Duration::from_secs(10),
            poll: Duration::from_secs(1),
            backoff: Backoff {
                initial: Duration::from_millis(500),
                max: Duration::from_secs(60),
                jitter: Jitter::Equal,
            },
            keep: Duration::from_secs(3_600),
            clean_every: Duration::from_secs(30),
            look_every: Duration::from_secs(5),
        }
    }
}

/// Publishes the rows of an outbox, each at least once, the rows of one order key in their order.
///
/// Several relays may run on one outbox. A row that cannot be published is retried forever, with growing delays; it
/// holds back the later rows of its own order key and no others. When nothing arrives at all, the relay treats it as an
/// outage of the broker: all rows are retried within five seconds.
///
/// It does not route: each row names its [destination](crate::Outgoing::destination), as the publisher understands it.
#[derive(Debug)]
pub struct Relay<S> {
    store: S,
    publisher: Publishes,
    config: RelayConfig,
    counts: Arc<RelayCounts>,
    /// By the kind of the error: an outage of the broker has as many errors as there are rows.
    lines: RateLimited,
}

struct Publishes(Arc<dyn Publisher>);

impl std::fmt::Debug for Publishes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

/// The result of a round.
enum Round {
    Idle,
    Sent,
    FailedWhole,
}

impl<S: OutboxStore> Relay<S> {
    /// A relay from `store` to `publisher`.
    ///
    /// # Errors
    /// [`Error`] of the kind `Config` if a limit is 0, or the publish timeout is longer than 20 s.
    pub fn new(store: S, publisher: Arc<dyn Publisher>, config: RelayConfig) -> Result<Self, Error> {
        let limits = [
            ("batch", config.batch == 0),
            ("per_key", config.per_key == 0),
            ("publish_timeout", config.publish_timeout.is_zero()),
            ("poll", config.poll.is_zero()),
            ("clean_every", config.clean_every.is_zero()),
            ("look_every", config.look_every.is_zero()),
        ];
        if let Some((name, _)) = limits.into_iter().find(|(_, wrong)| *wrong) {
            let what = format!("its {name} is 0; give it a larger one");
            return Err(Error::new(ErrorKind::Config, "make this relay", what));
        }
        if config.publish_timeout > LONGEST_PUBLISH {
            let what = format!(
                "its publish_timeout is {:?}; at most {LONGEST_PUBLISH:?}, since rows are held meanwhile",
                config.publish_timeout
            );
            return Err(Error::new(ErrorKind::Config, "make this relay", what));
        }
        Ok(Self {
            store,
            publisher: Publishes(publisher),
            config,
            counts: Arc::default(),
            lines: RateLimited::default(),
        })
    }

    /// What it does, also while it runs.
    pub fn counts(&self) -> Arc<RelayCounts> {
        Arc::clone(&self.counts)
    }

    /// Works until `shutdown` fires; then what is under way is finished first.
    ///
    /// # Errors
    /// [`Error`] if the outbox cannot be used as it is. While it cannot be reached the relay waits.
    ///
    /// # Cancel safety
    /// The rows in flight of a dropped call may be sent again.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut rng = fastrand::Rng::new();
        let (mut failures, mut told) = (0_u32, None::<Instant>);
        let mut clean_at = Instant::now() + self.config.clean_every;
        let mut look_at = Instant::now();
        while !shutdown.is_cancelled() {
            self.look(&mut look_at).await;
            let round = match self.round(failures, &mut rng).await {
                Ok(Round::Idle) if Instant::now() >= clean_at => {
                    self.clean(&mut clean_at).await.map(|()| Round::Idle)
                }
                round => round,
            };
            self.counts.set_outbox_up(round.is_ok());
            let pause = match round {
                Ok(Round::Sent) => {
                    failures = 0;
                    told = None;
                    if Instant::now() >= clean_at {
                        // What fails here fails in the next round as well.
                        let _ = self.clean(&mut clean_at).await;
                    }
                    continue;
                }
                Ok(Round::Idle) => (Duration::ZERO, self.config.poll),
                Ok(Round::FailedWhole) => {
                    failures = failures.saturating_add(1);
                    (LEAST_PAUSE, TROUBLE.delay(failures, Duration::ZERO, &mut rng))
                }
                Err(error) if error.is_retryable() => {
                    failures = failures.saturating_add(1);
                    if told.is_none_or(|told| told.elapsed() >= REMINDER) {
                        told = Some(Instant::now());
                        tracing::warn!(?error, failures, "outbox unavailable; rows stay queued");
                    }
                    (LEAST_PAUSE, TROUBLE.delay(failures, Duration::ZERO, &mut rng))
                }
                Err(error) => return Err(error),
            };
            let (least, most) = pause;
            let wait = async {
                tokio::time::sleep(least).await;
                self.store.wait(most.saturating_sub(least)).await;
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = wait => {}
            }
        }
        Ok(())
    }

    /// Publishes all that is due, and returns; for tests and for a last run.
    ///
    /// # Errors
    /// [`Error`] if the outbox does not answer. A row that failed is no error: see [`counts`](Self::counts).
    pub async fn run_until_idle(&self) -> Result<(), Error> {
        let mut rng = fastrand::Rng::new();
        while let Round::Sent = self.round(0, &mut rng).await? {}
        Ok(())
    }

    /// take → publish → mark.
    async fn round(&self, failures: u32, rng: &mut fastrand::Rng) -> Result<Round, Error> {
        let config = &self.config;
        let limits = TakeLimits { rows: config.batch, per_key: config.per_key, bytes: config.bytes };
        let Some((taken, rows)) = self.store.take(&limits).await? else { return Ok(Round::Idle) };
        let turn = RelayTurn::publish(rows, &*self.publisher.0, config.publish_timeout).await;
        let whole = turn.failed_whole();
        let outcomes = turn.outcomes(|attempts| {
            let backoff = if whole { (TROUBLE, failures + 1) } else { (config.backoff, attempts) };
            backoff.0.delay(backoff.1, Duration::ZERO, rng)
        });
        self.counts.add_failed(turn.failed.len());
        let mut kinds = Vec::new();
        for (seq, attempts, error) in &turn.failed {
            let kind = error.kind();
            if kinds.contains(&kind) {
                continue;
            }
            kinds.push(kind);
            let others = turn.failed.iter().filter(|(.., error)| error.kind() == kind).count() - 1;
            if let Some(left_out) = self.lines.allow(&format!("{kind:?}")) {
                tracing::warn!(seq, attempts, others, left_out, ?error, "outbox row not published; retrying");
            }
        }
        self.store.settle(taken, outcomes).await?;
        hit(Step::RelayMarked);
        self.counts.add_published(turn.published.len());
        Ok(if whole { Round::FailedWhole } else { Round::Sent })
    }

    /// Counts what waits, if it is time. What fails here fails in the next round as well.
    async fn look(&self, at: &mut Instant) {
        if Instant::now() < *at {
            return;
        }
        if let Ok(status) = self.store.status().await {
            self.counts.set_seen(status);
        }
        *at = Instant::now() + self.config.look_every;
    }

    /// Removes one batch of what is kept for too long. A full one is followed by another after the next round.
    async fn clean(&self, at: &mut Instant) -> Result<(), Error> {
        let removed = self.store.clean(self.config.keep, CLEAN_BATCH).await?;
        self.counts.add_cleaned(removed);
        if removed < u64::from(CLEAN_BATCH) {
            *at = Instant::now() + self.config.clean_every;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::outbox::{OutboxRow, OutboxStatus, RowOutcome};
    use crate::publisher::Outgoing;

    struct Empty;

    #[async_trait]
    impl OutboxStore for Empty {
        type Taken = ();

        async fn take(&self, _: &TakeLimits) -> Result<Option<((), Vec<OutboxRow>)>, Error> {
            Ok(None)
        }

        async fn settle(&self, (): (), _: Vec<(i64, RowOutcome)>) -> Result<(), Error> {
            Ok(())
        }

        async fn wait(&self, at_most: Duration) {
            tokio::time::sleep(at_most).await;
        }

        async fn clean(&self, _: Duration, _: u32) -> Result<u64, Error> {
            Ok(0)
        }

        async fn status(&self) -> Result<OutboxStatus, Error> {
            Ok(OutboxStatus::default())
        }
    }

    #[async_trait]
    impl Publisher for Empty {
        async fn publish(&self, _: &[Outgoing]) -> Vec<Result<(), Error>> {
            Vec::new()
        }
    }

    #[test]
    fn limits_that_cannot_work_are_refused_by_name() {
        let usual = RelayConfig::default();
        let zero = Duration::ZERO;
        for (config, name) in [
            (RelayConfig { batch: 0, ..usual }, "batch"),
            (RelayConfig { per_key: 0, ..usual }, "per_key"),
            (RelayConfig { poll: zero, ..usual }, "poll"),
            (RelayConfig { publish_timeout: zero, ..usual }, "publish_timeout"),
            (RelayConfig { publish_timeout: Duration::from_secs(21), ..usual }, "publish_timeout"),
        ] {
            let error = Relay::new(Empty, Arc::new(Empty), config).map(drop).unwrap_err();
            assert!(error.to_string().contains(&format!("its {name} is ")), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_with_nothing_to_do_ends_at_once_when_told() {
        let relay = Relay::new(Empty, Arc::new(Empty), RelayConfig::default()).unwrap();
        let stop = CancellationToken::new();
        let began = Instant::now();
        let (ended, ()) = tokio::join!(relay.run(stop.clone()), async {
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            stop.cancel();
        });
        ended.unwrap();
        assert_eq!(began.elapsed(), Duration::from_millis(2_500));
    }
}
