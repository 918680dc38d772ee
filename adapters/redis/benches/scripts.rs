//! Compares the store with the server's native speed: claim + complete of a key beside `SET … NX PX` + `SET … PX` of the
//! same keys with values of like size.
//!
//! `cargo bench -p onceward-redis --bench scripts -- [keys [rounds]] [--json]`.
//! All kinds take turns on one server within one run, each with batches of 500, two of them in flight. The server's
//! processor time per key does not depend on what else the machine does; the time by the clock does.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Completion, Entropy};
use onceward::{Fingerprint, Key, Scope, Store};
use onceward_redis::{RedisConfig, RedisLayout, RedisStore};
use onceward_test_servers::figures::Figures;
use onceward_test_servers::redis::Redis;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

const LEASE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(7 * 24 * 3_600);

/// The sizes of the records of a claim and of a completion.
const SIZES: [usize; 2] = [76, 19];
const SIZES_WITH_FINGERPRINT: [usize; 2] = [92, 28];

/// What is measured in turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Native,
    NativeWithFingerprint,
    Scripts,
    ScriptsWithFingerprint,
    Compact,
    CompactWithFingerprint,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Native,
        Self::Scripts,
        Self::Compact,
        Self::NativeWithFingerprint,
        Self::ScriptsWithFingerprint,
        Self::CompactWithFingerprint,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Native | Self::NativeWithFingerprint => "native",
            Self::Scripts | Self::ScriptsWithFingerprint => "scripts",
            Self::Compact | Self::CompactWithFingerprint => "scripts, compact layout",
        }
    }

    /// What it is compared with.
    fn native(self) -> Self {
        match self {
            Self::Native | Self::Scripts | Self::Compact => Self::Native,
            Self::NativeWithFingerprint | Self::ScriptsWithFingerprint | Self::CompactWithFingerprint => {
                Self::NativeWithFingerprint
            }
        }
    }

    fn has_fingerprint(self) -> bool {
        self.native() == Self::NativeWithFingerprint
    }
}

/// How much is measured, and how.
#[derive(Clone, Copy, Debug)]
struct Load {
    keys: u64,
    batch: u64,
    in_flight: u64,
    rounds: u64,
}

impl Load {
    const USUAL: Self = Self { keys: 200_000, batch: 500, in_flight: 2, rounds: 5 };
}

/// Microseconds per key: by the clock, and of the server's processor.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    clock: f64,
    server: f64,
}

/// One of the two.
type Micros = fn(&Cost) -> f64;

fn key(n: u64) -> Key {
    Key::from_bytes(*Fingerprint::of(&n.to_be_bytes()).as_bytes())
}

/// The batches of a lane, which no other lane has.
fn batches(first: u64, load: Load, lane: u64) -> impl Iterator<Item = Vec<u64>> {
    let share = load.keys / load.in_flight;
    let numbers: Vec<u64> = (first + lane * share..first + (lane + 1) * share).collect();
    let size = usize::try_from(load.batch).unwrap();
    numbers.chunks(size).map(<[u64]>::to_vec).collect::<Vec<_>>().into_iter()
}

fn names(numbers: &[u64]) -> Vec<Vec<u8>> {
    numbers.iter().map(|n| [b"ow:{?}tttttt", &key(*n).as_bytes()[..]].concat()).collect()
}

async fn native(mut connection: MultiplexedConnection, first: u64, load: Load, lane: u64, sizes: [usize; 2]) {
    let [claim, completion] = sizes.map(|size| if size == 19 { vec![b'1'; size] } else { vec![0; size] });
    for numbers in batches(first, load, lane) {
        let names = names(&numbers);
        let mut claims = redis::pipe();
        for name in &names {
            claims.cmd("SET").arg(name).arg(&claim).arg("NX").arg("PX").arg(604_860_000_u64);
        }
        let claimed: Vec<String> = claims.query_async(&mut connection).await.unwrap();
        assert_eq!(claimed.len(), names.len());
        let mut completions = redis::pipe();
        for name in &names {
            completions.cmd("SET").arg(name).arg(&completion).arg("PX").arg(604_800_000_u64);
        }
        let completed: Vec<String> = completions.query_async(&mut connection).await.unwrap();
        assert_eq!(completed.len(), names.len());
    }
}

async fn scripts(store: RedisStore, first: u64, load: Load, lane: u64, has_fingerprint: bool) {
    let scope = Scope::parse("bench").unwrap();
    let terms = ClaimTerms { lease: LEASE, max_attempts: 5, ttl: TTL };
    let mut entropy = Entropy::system();
    for numbers in batches(first, load, lane) {
        let requests: Vec<ClaimRequest> = numbers
            .iter()
            .map(|n| ClaimRequest {
                key: key(*n),
                owner: entropy.token(),
                fingerprint: has_fingerprint.then(|| Fingerprint::from_bytes(*key(*n).as_bytes())),
                generation: 0,
            })
            .collect();
        let completions: Vec<CompleteRequest> = store
            .claim(&scope, &terms, &requests)
            .await
            .into_iter()
            .zip(&requests)
            .map(|(claim, request)| match claim.unwrap() {
                Claim::Claimed(claimed) => CompleteRequest {
                    fingerprint: request.fingerprint,
                    ..CompleteRequest::new(claimed.lease, TTL)
                },
                other => panic!("expected a claim, got {other:?}"),
            })
            .collect();
        for completion in store.complete(&scope, &completions).await {
            assert_eq!(completion.unwrap(), Completion::Completed);
        }
    }
}

/// The seconds of processor time that the server has used.
fn processor(server: &Redis) -> f64 {
    ["used_cpu_user", "used_cpu_sys"].map(|name| server.info(name).parse::<f64>().unwrap()).iter().sum()
}

async fn measure(kind: Kind, server: &Redis, first: u64, load: Load) -> Cost {
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut config = RedisConfig::new(server.url());
    if matches!(kind, Kind::Compact | Kind::CompactWithFingerprint) {
        config.options.layout = RedisLayout::Compact;
    }
    let store = RedisStore::open(config).unwrap();
    // Connects, and makes the server compile the scripts.
    scripts(store.clone(), first + load.keys, Load { keys: 1, in_flight: 1, ..load }, 0, false).await;
    let (processor_before, began) = (processor(server), Instant::now());
    let mut lanes = JoinSet::new();
    for lane in 0..load.in_flight {
        match kind {
            Kind::Native => lanes.spawn(native(connection.clone(), first, load, lane, SIZES)),
            Kind::NativeWithFingerprint => {
                lanes.spawn(native(connection.clone(), first, load, lane, SIZES_WITH_FINGERPRINT))
            }
            _ => lanes.spawn(scripts(store.clone(), first, load, lane, kind.has_fingerprint())),
        };
    }
    lanes.join_all().await;
    let (clock, server_time) = (began.elapsed().as_secs_f64(), processor(server) - processor_before);
    server.cli(&["FLUSHALL"]);
    let per_key = |seconds: f64| seconds * 1e6 / load.keys as f64;
    Cost { clock: per_key(clock), server: per_key(server_time) }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let figures = Figures::of("redis");
    let load =
        Load { keys: figures.messages(200_000) as u64, rounds: figures.rounds(5) as u64, ..Load::USUAL };
    let server = Redis::start_with(&["--appendonly", "no", "--save", ""]);
    let mut costs = vec![Vec::new(); Kind::ALL.len()];
    for round in 0..load.rounds {
        for (kind, costs) in Kind::ALL.into_iter().zip(&mut costs) {
            costs.push(measure(kind, &server, round * 100_000_000, load).await);
        }
    }
    // Keys per second of the clock, and of the server's processor.
    let measures: [(&str, Micros); 2] =
        [("by the clock", |cost| cost.clock), ("by the server's processor", |cost| cost.server)];
    for (measure, micros) in measures {
        for (native, suffix) in [(Kind::Native, ""), (Kind::NativeWithFingerprint, ", with fingerprints")] {
            let rates = |kind: Kind| {
                let costs = &costs[Kind::ALL.iter().position(|other| *other == kind).unwrap()];
                costs.iter().map(|cost| 1e6 / micros(cost)).collect::<Vec<_>>()
            };
            let own = Kind::ALL.into_iter().filter(|kind| kind.native() == native && *kind != native);
            let own: Vec<_> = own.map(|kind| (kind.name(), rates(kind))).collect();
            let variants: Vec<_> = own.iter().map(|(name, rates)| (*name, &rates[..])).collect();
            let keys = usize::try_from(load.keys).unwrap();
            figures.report(&format!("{measure}{suffix}"), keys, (native.name(), &rates(native)), &variants);
        }
    }
}
