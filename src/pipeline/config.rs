//! Configuration of a pipeline: [`PipelineConfig`], [`Policies`], [`Ordering`].

use std::time::Duration;

use super::limits;
use crate::error::{Error, ErrorKind};
use crate::extract::KeySource;
use crate::key::Fingerprinting;
use crate::own_headers::OwnHeaders;
use crate::retry::RetryPolicy;
use crate::telemetry::Limits;

/// What to do with a message that has no usable idempotency key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMissingKey {
    /// Dead-letter it.
    #[default]
    DeadLetter,
    /// Use a hash of its payload as the key. A message whose key is present and [cannot be
    /// used](crate::KeyError::is_unusable) is dead-lettered: around one value there are any number of payloads.
    Hash,
    /// Run the handler without a claim; counted as unprotected. Duplicates run again.
    Process,
    /// Refuse it in the broker's way (a broker's own dead-letter rule may take it); counted.
    Reject,
}

/// What to do with a message whose key another claim holds. It is never acked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnInProgress {
    /// Hold the delivery and ask again.
    #[default]
    Hold,
    /// Give it back to a broker that can wait, for at least the lease that is left; hold it elsewhere.
    Park,
}

/// What to do with a message whose key is completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCompleted {
    /// Ack it.
    #[default]
    Ack,
    /// If it asks for a reply, send it the result that is kept, as the run that completed the key did; then ack it. A message
    /// that asks for none is acked. Needs [`replies`](crate::PipelineBuilder::replies) of the source and
    /// [`keep_results`](PipelineConfig::keep_results).
    ReplayResult,
}

/// What to do with a message whose key is known with another payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMismatch {
    /// Dead-letter it; the key stays as it is.
    #[default]
    DeadLetter,
    /// Ack it; counted.
    Ack,
    /// Run it without a claim, since the key belongs to another message; counted as unprotected. Its duplicates run again.
    /// Not for transactional handlers.
    Process,
}

/// What to do while the store does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStoreDown {
    /// Start nothing, ack nothing, take nothing in, until it answers again.
    #[default]
    Pause,
    /// Run handlers without a claim; each is counted as unprotected, and duplicates run again.
    Process,
}

/// What to do with a message that failed for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExhausted {
    /// Publish a dead letter, then ack.
    #[default]
    DeadLetter,
    /// Keep it in the source and try again at the longest delay; alarmed.
    Park,
}

/// What to do with a message that failed for good and whose dead letter its destination can never take: it is too large even
/// without our own headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLetterRefused {
    /// Keep it in the source and try again at the longest delay; alarmed. Those behind it in its lane go on.
    #[default]
    Park,
    /// Ack it: the message is lost. Counted as `letters_dropped`, and logged as an error.
    Drop,
}

/// One closed choice for each situation in which a message cannot simply run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// No usable key.
    pub on_missing_key: OnMissingKey,
    /// Claimed elsewhere.
    pub on_in_progress: OnInProgress,
    /// Completed before.
    pub on_completed: OnCompleted,
    /// Known with another payload.
    pub on_mismatch: OnMismatch,
    /// No answer from the store.
    pub on_store_down: OnStoreDown,
    /// Failed for good.
    pub on_exhausted: OnExhausted,
    /// Failed for good, and its dead letter can never be sent.
    pub on_letter_refused: OnLetterRefused,
}

/// Which messages wait for each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ordering {
    /// None do.
    #[default]
    None,
    /// Those of one partition.
    Partition,
    /// Those with the same broker ordering key (Kafka record key, SQS group id, Pub/Sub ordering key). Those without one do not
    /// wait.
    BrokerKey,
    /// Those with the same value of this source. Those without one do not wait.
    By(KeySource),
}

/// Whether duplicates are suppressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Duplicates are suppressed.
    #[default]
    Enforce,
    /// Nothing is suppressed: every delivery runs, duplicates are only counted. For a first look at a stream.
    Observe,
}

/// When the handler is taken to be unavailable: only single runs start then, one by one, to probe whether it works
/// again, and no more messages are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Whether there is a breaker at all. Without one, a run that ends as [`Unavailable`](crate::Verdict::Unavailable) still
    /// uses no attempt and is tried again after a pause of up to 5 s. Default true.
    pub enabled: bool,
    /// This many different messages that fail in a row, with any verdict and no success in between, count as a failure
    /// of the handler. 0: only `Unavailable` is. At most 10,000, default 20.
    pub failing_keys: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { enabled: true, failing_keys: 20 }
    }
}

/// The limits and choices of a pipeline.
#[derive(Clone, Debug)]
pub struct PipelineConfig {
    /// How long a claim lasts without renewal; it is renewed at a third of this. 100 ms to 12 h, default 30 s.
    pub lease: Duration,
    /// How long a completed key is remembered. It must cover the time in which duplicates can still arrive.
    /// At least the lease; default 8 d: more than the 7 d for which Kafka keeps records by default.
    pub ttl: Duration,
    /// Handlers that run at once. 1 to 65,536, default 256.
    pub concurrency: usize,
    /// Whether the number of handlers that run at once adapts to what their other side can take: up to `concurrency` while runs
    /// do not become slower by it, fewer when they do or find the handler unavailable. Default false.
    pub adaptive_concurrency: bool,
    /// How many handlers may start per second in this process, 0.001 to 1,000,000, with bursts of a tenth of a second's share.
    /// Duplicates do not count. `None`, the default: no limit. A message is claimed when it may start, not before.
    pub rate_limit: Option<f64>,
    /// Claims in one store call. 1 to 4,096, default 256.
    pub max_batch: usize,
    /// How many deliveries (in order: sequences of them) may be claimed before there is a slot for their handlers, so that handlers
    /// do not wait for claims. Only as many are as are needed for that: next to none where handlers take longer than claims. A crash
    /// leaves their claims to lapse. Not for transactional handlers, nor with a `rate_limit` or `adaptive_concurrency`. 0 to 65,536;
    /// 0, the default: a delivery is claimed when there is a slot for it.
    pub claims_ahead: usize,
    /// How many consecutive deliveries of a lane (a partition or an order key, see [`ordering`](Self::ordering)) are claimed
    /// together, at most: as many as their handlers, which run one after the other, are done with in a quarter of a second.
    /// Completions are written in batches beside them. Not for transactional handlers. 1 to 4,096, default 256; 1: the
    /// next one is claimed when the one before it is settled.
    pub lane_batch: usize,
    /// How many runs of a transactional handler may share a transaction, one after the other, and so a wait for the disk:
    /// what is ready together goes together, nothing waits for more. 1 to 4,096, default 1.
    pub transaction_batch: usize,
    /// Deliveries taken and not settled that can run, or run. Those that wait have a limit of their own. At least
    /// `concurrency`; default 4,096.
    pub max_in_flight: usize,
    /// Deliveries taken that wait: for a retry, behind another of their lane or key, for a claim of another process or for
    /// an answer of the store. When so many wait, no more are taken in. `None`: four times `max_in_flight`.
    pub max_waiting: Option<usize>,
    /// Of these, how many of one partition may wait before it is paused, where the source can pause single partitions. All
    /// partitions share `max_waiting` besides. `None`: half of `max_in_flight`.
    pub max_waiting_per_partition: Option<usize>,
    /// Bytes of all deliveries taken and not settled. A single larger message is still taken, alone. Default 256 MiB.
    pub max_in_flight_bytes: usize,
    /// The largest payload that is handled, in bytes. A message with a larger one is dead-lettered unread, as a defect of its
    /// own; it is held in memory until then. From 1; `None`, the default: no limit but the broker's.
    pub max_message_bytes: Option<usize>,
    /// Which messages wait for each other.
    pub ordering: Ordering,
    /// How long a handler may run. Default 30 s.
    pub handler_timeout: Duration,
    /// How long a cancelled handler has to return before its future is dropped. Default 5 s.
    pub cancel_grace: Duration,
    /// How long a shutdown waits for running handlers. Default 25 s.
    pub drain_timeout: Duration,
    /// How long a store call may take before its outcome is called unknown. Default 5 s.
    pub store_timeout: Duration,
    /// How long a publish of dead letters or replies may take before its outcome is called unknown. Default 10 s.
    pub publish_timeout: Duration,
    /// When failed messages are tried again.
    pub retry: RetryPolicy,
    /// When the handler is taken to be unavailable.
    pub breaker: BreakerConfig,
    /// What to do when a message cannot simply run.
    pub policies: Policies,
    /// Whether duplicates are suppressed.
    pub mode: Mode,
    /// The part of payloads under one key that is compared, by a 128-bit fingerprint. Default: the value of JSON, the
    /// bytes of anything else. All consumers of a scope must use the same.
    pub fingerprint: Fingerprinting,
    /// Whether what handlers return is kept with the completion. Default true.
    pub keep_results: bool,
    /// The longest result that is kept, in bytes; a longer one is not kept. Default 64 KiB.
    pub max_result_bytes: usize,
    /// Whose `onceward-` headers name key and generation of a message, and the secret that seals our dead letters. The
    /// source's adapter must be given the same. By default, none are believed. A message that looks like a dead letter
    /// of ours then has the key that its content gives, and is dead-lettered again where that is dead.
    pub own_headers: OwnHeaders,
    /// Stop when the source is idle and nothing is in flight. Default false. A source that cannot report whether it is idle
    /// (`Capabilities::reports_idle`) is refused.
    pub until_idle: bool,
    /// Makes owner tokens and jitter repeatable. For simulations only.
    pub seed: Option<u64>,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            ttl: Duration::from_secs(8 * 24 * 3600),
            concurrency: 256,
            adaptive_concurrency: false,
            rate_limit: None,
            max_batch: 256,
            claims_ahead: 0,
            lane_batch: 256,
            transaction_batch: 1,
            max_in_flight: 4096,
            max_waiting: None,
            max_waiting_per_partition: None,
            max_in_flight_bytes: 256 << 20,
            max_message_bytes: None,
            ordering: Ordering::None,
            handler_timeout: Duration::from_secs(30),
            cancel_grace: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(25),
            store_timeout: Duration::from_secs(5),
            publish_timeout: Duration::from_secs(10),
            retry: RetryPolicy::default(),
            breaker: BreakerConfig::default(),
            policies: Policies::default(),
            mode: Mode::Enforce,
            fingerprint: Fingerprinting::Json,
            keep_results: true,
            max_result_bytes: 64 << 10,
            own_headers: OwnHeaders::default(),
            until_idle: false,
            seed: None,
        }
    }
}

impl PipelineConfig {
    /// Checks each limit, and how the limits relate.
    ///
    /// # Errors
    /// A sentence naming the values that disagree and the fix.
    pub fn check(&self) -> Result<(), Error> {
        let wrong =
            |text: String| Err(Error::new(ErrorKind::Config, "use this pipeline configuration", text));
        let range = |name: &str, value: usize, low: usize, high: usize| {
            limits::range(name, value, low, high).or_else(wrong)
        };
        range("concurrency", self.concurrency, 1, 65_536)?;
        if let Some(rate) = self.rate_limit.filter(|rate| !(0.001..=1_000_000.0).contains(rate)) {
            return wrong(format!("rate_limit is {rate}; it must be from 0.001 to 1000000 runs per second"));
        }
        range("max_batch", self.max_batch, 1, 4_096)?;
        range("claims_ahead", self.claims_ahead, 0, 65_536)?;
        range("lane_batch", self.lane_batch, 1, 4_096)?;
        range("transaction_batch", self.transaction_batch, 1, 4_096)?;
        range("max_in_flight", self.max_in_flight, 1, 1 << 24)?;
        range("max_message_bytes", self.max_message_bytes.unwrap_or(usize::MAX), 1, usize::MAX)?;
        range("max_attempts", self.retry.max_attempts as usize, 1, limits::MOST_ATTEMPTS)?;
        range("max_waiting", self.max_waiting(), 1, 1 << 26)?;
        range("max_waiting_per_partition", self.max_waiting_per_partition(), 1, 1 << 26)?;
        range("breaker.failing_keys", self.breaker.failing_keys as usize, 0, 10_000)?;
        if self.max_in_flight < self.concurrency {
            return wrong(format!(
                "max_in_flight is {}, less than concurrency {}; raise it, or handlers would stand idle",
                self.max_in_flight, self.concurrency
            ));
        }
        if self.policies.on_completed == OnCompleted::ReplayResult && !self.keep_results {
            let text = "on_completed is replay-result, and keep_results is false, so that there are no results; set it to true";
            return wrong(text.to_owned());
        }
        if let Some(fault) = self.fingerprint.fault() {
            return wrong(fault.to_owned());
        }
        limits::lease_and_ttl(self.lease, self.ttl).or_else(wrong)?;
        for (name, value, may_be_zero) in [
            ("handler_timeout", self.handler_timeout, false),
            ("store_timeout", self.store_timeout, false),
            ("publish_timeout", self.publish_timeout, false),
            ("retry.max", self.retry.backoff.max, false),
            ("cancel_grace", self.cancel_grace, true),
            ("drain_timeout", self.drain_timeout, true),
        ] {
            limits::wait(name, value, may_be_zero).or_else(wrong)?;
        }
        if self.retry.backoff.initial > self.retry.backoff.max {
            return wrong(format!(
                "retry.initial is {:?}, longer than retry.max {:?}; swap them",
                self.retry.backoff.initial, self.retry.backoff.max
            ));
        }
        Ok(())
    }

    /// How many deliveries may wait.
    pub(crate) fn max_waiting(&self) -> usize {
        self.max_waiting.unwrap_or(self.max_in_flight.saturating_mul(4))
    }

    /// How many deliveries of one partition may wait before it is paused.
    pub(crate) fn max_waiting_per_partition(&self) -> usize {
        self.max_waiting_per_partition.unwrap_or((self.max_in_flight / 2).max(1))
    }

    /// The limits that gauges are compared with.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            concurrency: self.concurrency,
            in_flight: self.max_in_flight,
            in_flight_bytes: self.max_in_flight_bytes,
            waiting: self.max_waiting(),
            ttl: self.ttl,
        }
    }

    /// How often leases are renewed.
    pub(crate) fn renew_every(&self) -> Duration {
        self.lease / 3
    }

    /// How long before the end of the lease a run must stop: for clocks that run apart and messages under way.
    pub(crate) fn lease_margin(&self) -> Duration {
        self.lease / 10
    }
}
