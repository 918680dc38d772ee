//! Draws a plan from a seed: configuration, workload, behaviours and troubles.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use onceward::pipeline::config::{BreakerConfig, OnInProgress, Ordering, Policies};
use onceward::retry::{Backoff, Jitter, RetryPolicy};
use onceward::testing::{Faults, Habits};
use onceward::{Fingerprinting, PipelineConfig};

const MS: Duration = Duration::from_millis(1);

/// What a handler does with a message, run by run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Succeeds at once.
    Prompt,
    /// Succeeds after this long, even if it is cancelled.
    Slow(Duration),
    /// Succeeds after this long, unless it is cancelled.
    Obedient(Duration),
    /// Fails so many times.
    Fails(u32),
    /// Fails in every run, with a permanent error.
    Permanent,
    /// Panics so many times.
    Panics(u32),
    /// Hangs so many times, until it is dropped.
    Hangs(u32),
    /// Finds what it needs unavailable so many times.
    Unavailable(u32),
}

/// A message to publish; copies share their id.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) id: String,
    pub(crate) order_key: Option<String>,
}

/// Something that befalls the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// A worker dies, and another one takes its place after this long.
    Death { worker: usize, replaced_after: Duration },
    /// A worker is paused.
    Pause { worker: usize, lasts: Duration },
    /// A worker is asked to end, and another one takes its place when it has.
    Restart { worker: usize },
    /// The store refuses every call.
    Outage { lasts: Duration },
    /// All connections to the broker break.
    Disconnect,
    /// A partition leaves a worker and is assigned to it again after this long.
    Leaves { worker: usize, partition: u32, lasts: Duration },
    /// The store refuses every call for a part of the keys.
    NodeDown { lasts: Duration },
    /// The dead-letter destination refuses every publish.
    LettersDown { lasts: Duration },
    /// The store crashes and has forgotten what it had not synced.
    StoreCrash,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) transactional: bool,
    pub(crate) workers: usize,
    pub(crate) config: PipelineConfig,
    pub(crate) habits: Habits,
    pub(crate) store_faults: Faults,
    pub(crate) letter_faults: Faults,
    pub(crate) messages: Vec<Planned>,
    pub(crate) behaviours: BTreeMap<String, Behaviour>,
    pub(crate) troubles: Vec<(Duration, Trouble)>,
    /// From here on nothing goes wrong any more, but for the broker's own habits.
    pub(crate) healed_at: Duration,
}

fn pick<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())].clone()
}

fn up_to(rng: &mut Rng, longest: Duration) -> Duration {
    longest.mul_f64(rng.f64())
}

impl Plan {
    pub(crate) fn draw(seed: u64) -> Self {
        let rng = &mut Rng::with_seed(seed);
        let mut config = config(rng, seed);
        let workers = pick(rng, &[1, 1, 2, 2, 3]);
        let habits = habits(rng, seed);
        let heals = MS * rng.u32(2_000..15_000);
        let (messages, behaviours) = workload(rng, &config, heals);
        let gentle = config.lease / 20;
        let calm = rng.f64() < 0.3;
        let mut chance = |most: f64| if calm { 0.0 } else { most * rng.f64() };
        let (refused, reply_lost, unconfirmed) = (chance(0.1), chance(0.1), chance(0.3));
        let store_faults = Faults {
            refused,
            reply_lost,
            latency: up_to(rng, gentle),
            reply_latency: up_to(rng, gentle),
            seed: rng.u64(..),
        };
        let letter_faults =
            Faults { refused: unconfirmed, reply_lost: unconfirmed, seed: rng.u64(..), ..Faults::NONE };
        let mut troubles = troubles(rng, workers, config.lease, heals);
        // Brokers that take partitions away have no visibility that could lapse meanwhile.
        if habits.partitions > 1 && habits.visibility.is_none() {
            for _ in 0..pick(rng, &[0, 1, 3]) {
                let (worker, partition) = (rng.usize(..workers), rng.u32(..habits.partitions));
                let lasts = up_to(rng, config.lease * 4);
                troubles.push((up_to(rng, heals), Trouble::Leaves { worker, partition, lasts }));
            }
            troubles.sort_by_key(|(at, _)| *at);
        }
        let transactional = rng.bool();
        if transactional {
            config.transaction_batch = pick(rng, &[1, 1, 2, 4, 16]);
        }
        if rng.f64() < 0.3 {
            let crashes = (0..rng.usize(1..4)).map(|_| (up_to(rng, heals), Trouble::StoreCrash));
            troubles.extend(crashes.collect::<Vec<_>>());
            troubles.sort_by_key(|(at, _)| *at);
        }
        Self {
            transactional,
            workers,
            config,
            habits,
            store_faults,
            letter_faults,
            messages,
            behaviours,
            troubles,
            healed_at: heals,
        }
    }

    /// True if nothing befalls the system: no death, no outage, no fault of the store. Partitions may leave.
    pub(crate) fn is_calm(&self) -> bool {
        let leaves = |(_, trouble): &(Duration, Trouble)| matches!(trouble, Trouble::Leaves { .. });
        self.troubles.iter().all(leaves)
            && self.store_faults.refused == 0.0
            && self.store_faults.reply_lost == 0.0
    }

    /// True if first effects must come in the order of publication within an order key.
    pub(crate) fn keeps_order(&self) -> bool {
        // One that drains works beside its successor, and this broker gives both what comes next.
        let one_by_one = |(_, trouble): &(Duration, Trouble)| !matches!(trouble, Trouble::Restart { .. });
        self.config.ordering != Ordering::None && self.workers == 1 && self.troubles.iter().all(one_by_one)
    }
}

fn config(rng: &mut Rng, seed: u64) -> PipelineConfig {
    let lease = pick(rng, &[500, 1_000, 2_000, 5_000]) * MS;
    let concurrency = pick(rng, &[1, 2, 4, 16]);
    let jitter = pick(rng, &[Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Decorrelated]);
    PipelineConfig {
        lease,
        ttl: Duration::from_secs(24 * 3600),
        concurrency,
        adaptive_concurrency: rng.f64() < 0.2,
        rate_limit: pick(rng, &[None, None, None, None, Some(20.0), Some(500.0)]),
        max_batch: pick(rng, &[1, 3, 8, 64]),
        lane_batch: pick(rng, &[1, 2, 5, 256]),
        claims_ahead: pick(rng, &[0, 1, 3, 512]),
        max_in_flight: concurrency * pick(rng, &[1, 3, 20]),
        max_waiting: pick(rng, &[None, None, Some(3)]),
        max_waiting_per_partition: pick(rng, &[None, Some(1)]),
        breaker: BreakerConfig { enabled: rng.f64() < 0.9, failing_keys: pick(rng, &[0, 3, 20]) },
        ordering: pick(rng, &[Ordering::None, Ordering::BrokerKey, Ordering::Partition]),
        handler_timeout: lease * pick(rng, &[1, 2, 4]),
        cancel_grace: lease / pick(rng, &[2, 8]),
        drain_timeout: lease * pick(rng, &[0, 1, 3]),
        store_timeout: lease / pick(rng, &[1, 2, 4]),
        publish_timeout: lease,
        retry: RetryPolicy {
            max_attempts: rng.u32(1..5),
            backoff: Backoff { initial: 50 * MS, max: pick(rng, &[200, 3_000]) * MS, jitter },
        },
        policies: Policies {
            on_in_progress: pick(rng, &[OnInProgress::Hold, OnInProgress::Park]),
            ..Policies::default()
        },
        fingerprint: if rng.bool() { Fingerprinting::Json } else { Fingerprinting::Off },
        seed: Some(seed),
        ..PipelineConfig::default()
    }
}

fn habits(rng: &mut Rng, seed: u64) -> Habits {
    let mut sometimes = |most: f64| if rng.bool() { 0.0 } else { most * rng.f64() };
    let (duplicate, settle_reply_lost, settle_fails, disconnect) =
        (sometimes(0.3), sometimes(0.2), sometimes(0.2), sometimes(0.05));
    Habits {
        delayed_retry: rng.f64() < 0.3,
        partitions: pick(rng, &[1, 1, 3]),
        visibility: (rng.f64() < 0.25).then(|| pick(rng, &[1_500, 3_000]) * MS),
        batch: pick(rng, &[1, 4, 32]),
        duplicate,
        settle_reply_lost,
        settle_fails,
        disconnect,
        seed,
        ..Habits::default()
    }
}

fn workload(
    rng: &mut Rng,
    config: &PipelineConfig,
    over: Duration,
) -> (Vec<Planned>, BTreeMap<String, Behaviour>) {
    let count = rng.usize(3..40);
    let groups = rng.usize(1..5);
    let copies = rng.f64() * 0.4;
    // In bursts a lane has a backlog, of which several messages are claimed together.
    let bursts = rng.bool().then(|| rng.u32(1..4));
    let mut messages = Vec::new();
    let mut behaviours = BTreeMap::new();
    for number in 0..count {
        let id = format!("m{number}");
        let order_key = rng.bool().then(|| format!("g{}", rng.usize(..groups)));
        behaviours.insert(id.clone(), behaviour(rng, config));
        let mut at = match bursts {
            Some(bursts) => over / bursts * rng.u32(..bursts),
            None => up_to(rng, over),
        };
        messages.push(Planned { at, id: id.clone(), order_key: order_key.clone() });
        while rng.f64() < copies {
            at += up_to(rng, over / 2);
            messages.push(Planned { at, id: id.clone(), order_key: order_key.clone() });
        }
    }
    messages.sort_by_key(|message| message.at);
    (messages, behaviours)
}

fn behaviour(rng: &mut Rng, config: &PipelineConfig) -> Behaviour {
    let longer_than_the_lease = config.handler_timeout.mul_f64(0.95);
    match rng.u32(0..100) {
        0..45 => Behaviour::Prompt,
        45..65 => Behaviour::Slow(up_to(rng, longer_than_the_lease)),
        65..75 => Behaviour::Obedient(up_to(rng, longer_than_the_lease)),
        75..87 => Behaviour::Fails(rng.u32(1..6)),
        87..89 => Behaviour::Permanent,
        89..93 => Behaviour::Unavailable(rng.u32(1..8)),
        93..96 => Behaviour::Panics(rng.u32(1..4)),
        _ => Behaviour::Hangs(rng.u32(1..4)),
    }
}

fn troubles(rng: &mut Rng, workers: usize, lease: Duration, until: Duration) -> Vec<(Duration, Trouble)> {
    let count = pick(rng, &[0, 0, 1, 2, 3, 5]);
    let mut troubles = Vec::new();
    for _ in 0..count {
        let worker = rng.usize(..workers);
        let trouble = match rng.u32(0..100) {
            0..30 => Trouble::Death { worker, replaced_after: up_to(rng, lease * 2) },
            30..50 => Trouble::Pause { worker, lasts: up_to(rng, lease * 4) },
            50..60 => Trouble::Restart { worker },
            60..72 => Trouble::NodeDown { lasts: up_to(rng, lease * 4) },
            72..80 => Trouble::Outage { lasts: up_to(rng, lease * 4) },
            80..92 => Trouble::Disconnect,
            _ => Trouble::LettersDown { lasts: up_to(rng, lease * 4) },
        };
        troubles.push((up_to(rng, until), trouble));
    }
    troubles.sort_by_key(|(at, _)| *at);
    troubles
}
