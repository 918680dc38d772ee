//! Compares the scripts with the reference: the same random calls to the memory store and to Redis have the same results.
//!
//! Leases expire immediately or last for an hour, and the TTL is long, so that the two clocks need not agree.

use std::time::Duration;

use bytes::Bytes;
use onceward::adapter::StoreAdmin;
use onceward::store::{
    BuryRequest, Claim, ClaimRequest, ClaimTerms, CompleteRequest, Entropy, FailRequest, Failure, KeyRecord,
    Lease, OwnerToken, Reason, RedriveRequest, RenewRequest, TraceContext,
};
use onceward::{Error, Fingerprint, Key, MemoryStore, Scope, Store};
use onceward_redis::{RedisConfig, RedisLayout, RedisStore};
use onceward_test_servers::redis::Redis;

use crate::support::{self, ConfigExt};

const HOUR: Duration = Duration::from_secs(3_600);
const KEYS: u8 = 3;

/// The draws that mean a completion.
const COMPLETE: std::ops::RangeInclusive<u8> = 4..=5;

/// The two stores and the leases that each has issued; the nth of both belong together.
struct Pair {
    reference: MemoryStore,
    redis: RedisStore,
    scope: Scope,
    leases: Vec<[Lease; 2]>,
}

/// A result without the parts that depend on the clock.
fn plain(claim: &Claim) -> String {
    match claim {
        Claim::Claimed(claimed) => format!(
            "claimed, attempt {}, lost {}, generation {}, live {}",
            claimed.attempt,
            claimed.lost,
            claimed.generation,
            claimed.lease_left > HOUR / 2
        ),
        Claim::InProgress { retry_in } => format!("in progress, {}", *retry_in > HOUR / 2),
        Claim::Completed { result, trace, .. } => format!("completed with {result:?}, {trace:?}"),
        Claim::Exhausted(exhausted) => format!(
            "exhausted: {:?} {:?}, attempts {}, lost {}, generation {}",
            exhausted.reason, exhausted.error, exhausted.attempts, exhausted.lost, exhausted.generation
        ),
        Claim::Dead { reason, generation, .. } => format!("dead: {reason:?}, generation {generation}"),
        Claim::Mismatch => "mismatch".to_owned(),
    }
}

fn plain_failure(failure: &Failure) -> String {
    match failure {
        Failure::Recorded { attempts, .. } => format!("recorded {attempts}"),
        Failure::Lost => "lost".to_owned(),
    }
}

fn plain_record(record: Option<KeyRecord>) -> String {
    record.map_or_else(
        || "nothing".to_owned(),
        |record| {
            format!(
                "{:?} attempts {} lost {} generation {} reason {:?} error {:?} result {:?} lease {:?} expires {}",
                record.state,
                record.attempts,
                record.lost,
                record.generation,
                record.reason,
                record.error,
                record.result_bytes,
                record.lease_left.map(|left| left > HOUR / 2),
                record.expires_in > 20 * HOUR
            )
        },
    )
}

fn one<T>(answers: Vec<Result<T, Error>>) -> T {
    answers.into_iter().next().unwrap().unwrap()
}

fn lease_of(claim: &Claim) -> Option<Lease> {
    match claim {
        Claim::Claimed(claimed) => Some(claimed.lease),
        Claim::Exhausted(exhausted) => Some(exhausted.lease),
        _ => None,
    }
}

impl Pair {
    /// Makes the same call to both and compares the results.
    async fn step(&mut self, rng: &mut fastrand::Rng, owners: &[OwnerToken], place: &str) -> String {
        let key = Key::from_bytes([rng.u8(..KEYS); 16]);
        let fingerprint =
            [None, None, Some(Fingerprint::of(b"a")), Some(Fingerprint::of(b"b"))][rng.usize(..4)];
        let generation = [0, 0, 0, 1, 2, u32::MAX][rng.usize(..6)];
        let ttl = 24 * HOUR;
        let what = rng.u8(..12);
        let lease = (!self.leases.is_empty()).then(|| {
            // Usually a recent one: an old one is always rejected for the same reasons.
            let back = rng.usize(..self.leases.len().min(6));
            let [mut reference, mut redis] = self.leases[self.leases.len() - 1 - back];
            match rng.u8(..20) {
                0 => (reference.fence, redis.fence) = (reference.fence + 1, redis.fence + 1),
                // A short record of a completion keeps no owner, so that a foreign token under the right fence reads as
                // a repeat. Fences are given out once, and both answers mean ack: completions are left out here.
                1 if !COMPLETE.contains(&what) => (reference.owner, redis.owner) = (owners[0], owners[0]),
                _ => {}
            }
            [reference, redis]
        });
        let (call, said): (String, [String; 2]) = match (what, lease) {
            (0..=3, _) | (_, None) => {
                let lease_for = if rng.bool() { HOUR } else { Duration::ZERO };
                let terms = ClaimTerms { lease: lease_for, max_attempts: rng.u32(0..4), ttl };
                let owner = owners[rng.usize(..owners.len())];
                let request = ClaimRequest { key, owner, fingerprint, generation };
                let answers = [
                    one(self.reference.claim(&self.scope, &terms, &[request]).await),
                    one(self.redis.claim(&self.scope, &terms, &[request]).await),
                ];
                if let (Some(reference), Some(redis)) = (lease_of(&answers[0]), lease_of(&answers[1])) {
                    self.leases.push([reference, redis]);
                }
                (format!("{terms:?} {request:?}"), [plain(&answers[0]), plain(&answers[1])])
            }
            (what, Some([reference, redis])) if COMPLETE.contains(&what) => {
                let result =
                    [None, Some(Bytes::new()), Some(Bytes::from_static(b"\0done"))][rng.usize(..3)].clone();
                let trace = TraceContext::new(7, rng.u64(..2));
                let request = |lease| CompleteRequest {
                    lease,
                    result: result.clone(),
                    fingerprint,
                    generation,
                    ttl,
                    trace,
                };
                let answers = [
                    one(self.reference.complete(&self.scope, &[request(reference)]).await),
                    one(self.redis.complete(&self.scope, &[request(redis)]).await),
                ];
                (format!("{:?}", request(reference)), answers.map(|answer| format!("{answer:?}")))
            }
            (6, Some([reference, redis])) => {
                let lease_for = if rng.bool() { HOUR } else { Duration::ZERO };
                let started = rng.bool();
                let request = |lease| RenewRequest { lease, lease_for, started };
                let answers = [
                    one(self.reference.renew(&self.scope, &[request(reference)]).await),
                    one(self.redis.renew(&self.scope, &[request(redis)]).await),
                ];
                (format!("{:?}", request(reference)), answers.map(|answer| format!("{answer:?}")))
            }
            (7..=8, Some([reference, redis])) => {
                let terminal = [None, Some(Reason::Permanent), Some(Reason::Defect)][rng.usize(..3)];
                let error = ["", "no luck", "\0é"][rng.usize(..3)].to_owned();
                let request = |lease| FailRequest { lease, error: error.clone(), terminal };
                let answers = [
                    one(self.reference.fail(&self.scope, &[request(reference)]).await),
                    one(self.redis.fail(&self.scope, &[request(redis)]).await),
                ];
                (format!("{:?}", request(reference)), answers.map(|answer| plain_failure(&answer)))
            }
            (9, Some([reference, redis])) => {
                let request = |lease| BuryRequest { lease, ttl };
                let answers = [
                    one(self.reference.bury(&self.scope, &[request(reference)]).await),
                    one(self.redis.bury(&self.scope, &[request(redis)]).await),
                ];
                (format!("{:?}", request(reference)), answers.map(|answer| format!("{answer:?}")))
            }
            (10, Some([reference, redis])) => {
                let answers = [
                    one(self.reference.release(&self.scope, &[reference]).await),
                    one(self.redis.release(&self.scope, &[redis]).await),
                ];
                (format!("release {reference:?}"), answers.map(|answer| answer.to_string()))
            }
            (_, Some(_)) if rng.u8(..4) > 0 => {
                let request = RedriveRequest { key, generation, ttl };
                let answers = [
                    one(self.reference.redrive(&self.scope, &[request]).await),
                    one(self.redis.redrive(&self.scope, &[request]).await),
                ];
                (format!("{request:?}"), answers.map(|answer| format!("{answer:?}")))
            }
            (_, Some(_)) => {
                let answers = [
                    one(self.reference.forget(&self.scope, &[key]).await),
                    one(self.redis.forget(&self.scope, &[key]).await),
                ];
                (format!("forget {key}"), answers.map(|answer| answer.to_string()))
            }
        };
        let call = format!("{place}: {call}");
        assert_same(&call, &said[0], &said[1]);
        for byte in 0..KEYS {
            let key = Key::from_bytes([byte; 16]);
            let reference = plain_record(self.reference.inspect(&self.scope, &key).await.unwrap());
            let redis = plain_record(self.redis.inspect(&self.scope, &key).await.unwrap());
            assert_same(&format!("{call}, then inspect {key}"), &reference, &redis);
        }
        said[0].clone()
    }
}

fn assert_same(call: &str, reference: &str, redis: &str) {
    assert_eq!(reference, redis, "the reference and Redis disagree at {call}");
}

#[tokio::test]
async fn random_calls_have_the_same_answers_as_the_reference() {
    let seed = std::env::var("ONCEWARD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seed.map_or_else(|| 0..40, |seed: u64| seed..seed + 1);
    let mut kinds = std::collections::HashSet::new();
    for (seed, layout) in seeds.flat_map(|seed| [(seed, RedisLayout::Plain), (seed, RedisLayout::Compact)]) {
        let config = support::own_part(RedisConfig::new(Redis::shared().url())).layout(layout);
        let mut pair = Pair {
            reference: MemoryStore::new(),
            redis: support::open(&config),
            scope: Scope::parse("same").unwrap(),
            leases: Vec::new(),
        };
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut entropy = Entropy::seeded(seed);
        let owners: Vec<OwnerToken> = (0..4).map(|_| entropy.token()).collect();
        for step in 0..250 {
            let said = pair.step(&mut rng, &owners, &format!("seed {seed}, {layout:?}, step {step}")).await;
            kinds.insert(said.split([' ', ',']).next().unwrap().to_owned());
        }
    }
    // The calls reach every result.
    for kind in [
        "claimed",
        "in",
        "completed",
        "exhausted:",
        "dead:",
        "mismatch",
        "Completed",
        "Repeated",
        "Inserted",
        "DoneByAnother",
        "HeldByAnother",
        "Renewed",
        "Lost",
        "recorded",
        "lost",
        "Dead",
        "true",
        "false",
        "Open",
        "Resolved",
        "NotDead",
    ] {
        assert!(kinds.contains(kind), "no call was answered by {kind}; there were {kinds:?}");
    }
}
