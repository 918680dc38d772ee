//! A key that is claimed, forgotten or expired, purged and claimed again has a larger fence than in any earlier claim, however
//! purge and claim come between each other. The order is forced by locks that the test holds.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use onceward::adapter::{Expiring, StoreAdmin};
use onceward::store::{Claim, ClaimRequest, ClaimTerms, Entropy};
use onceward::{Key, Scope, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);
const TERMS: ClaimTerms =
    ClaimTerms { lease: Duration::from_secs(60), ttl: Duration::from_secs(3_600), max_attempts: 5 };
const ROLE: &str = "postgres";
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A schema of its own on the shared server.
struct Place {
    schema: String,
    scope: Scope,
}

impl Place {
    fn new() -> Self {
        let schema = format!("fences_{}", COUNT.fetch_add(1, Ordering::SeqCst));
        Self { schema, scope: Scope::parse("fences").unwrap() }
    }

    /// A worker's store. It waits for locks for as long as the test holds them.
    async fn store(&self) -> PgStore {
        let server = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
        let mut config = PgConfig::new(server.url(ROLE));
        config.options.schema = self.schema.clone();
        config.options.statement_timeout = 2 * PATIENCE;
        config.options.lock_timeout = PATIENCE;
        let patient = config;
        PgStore::open(patient).await.unwrap()
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&Postgres::shared().url(ROLE)).await.unwrap()
    }

    /// `@` is replaced by the schema.
    async fn run(&self, conn: &mut PgConnection, sql: &str) {
        conn.execute(AssertSqlSafe(sql.replace('@', &self.schema))).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.replace('@', &self.schema));
        self.connect().await.fetch_one(sql).await.unwrap().get(0)
    }

    /// An expired record of a key, with this fence.
    async fn expired(&self, key: Key, fence: &str) {
        let sql = format!(
            "INSERT INTO @.keys (scope, key, state, started, owner, fence, attempts, lost, generation, lease_until, first_at, \
             written_at, ttl, expires_at) \
             SELECT id, decode('{key}', 'hex'), 4, false, decode(md5('owner'), 'hex'), {fence}, 1, 0, 0, 0, 1, 1, 1, 2 \
             FROM @.scopes"
        );
        self.run(&mut self.connect().await, &sql).await;
    }

    /// Waits until so many statements on this schema wait for a lock.
    async fn until_waiting(&self, statements: i64, what: &str) {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%@%'";
        let end = Instant::now() + PATIENCE;
        while self.number(waiting).await != statements {
            assert!(Instant::now() < end, "{what} does not wait");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn claims(&self, store: &PgStore, keys: &[Key]) -> JoinHandle<Vec<i64>> {
        let (store, scope, keys) = (store.clone(), self.scope.clone(), keys.to_vec());
        tokio::spawn(async move { claim(&store, &scope, &keys).await })
    }
}

/// Claims keys, and answers their fences.
async fn claim(store: &PgStore, scope: &Scope, keys: &[Key]) -> Vec<i64> {
    let mut entropy = Entropy::system();
    let request =
        |key: &Key| ClaimRequest { key: *key, owner: entropy.token(), fingerprint: None, generation: 0 };
    let batch: Vec<_> = keys.iter().map(request).collect();
    let fence = |claim: Result<Claim, _>| match claim.unwrap() {
        Claim::Claimed(claimed) => i64::try_from(claimed.lease.fence).unwrap(),
        other => panic!("expected a claim, got {other:?}"),
    };
    store.claim(scope, &TERMS, &batch).await.into_iter().map(fence).collect()
}

fn key(n: u8) -> Key {
    Key::from_bytes([n; 16])
}

const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
const HOUR: i64 = 3_600_000_000;

/// While a purge has removed a row and has not committed, a claim of that key has read clock and floor and waits. What it
/// read must do: so a row whose fence is ahead of the clock, which was set back, is not removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_waits_for_a_purge_has_a_larger_fence_than_what_was_purged() {
    let place = Place::new();
    let (cleaner, worker) = (place.store().await, place.store().await);
    claim(&worker, &place.scope, &[key(9)]).await;
    place.expired(key(1), &format!("{NOW} - 10")).await;
    place.expired(key(2), &format!("{NOW} + {HOUR}")).await;
    let fence = |n| format!("SELECT fence FROM @.keys WHERE key = decode(repeat('0{n}', 16), 'hex')");
    let (behind, ahead) = (place.number(&fence(1)).await, place.number(&fence(2)).await);

    // A purge raises the floor at its end: there it is held, with the rows removed.
    let mut floor = place.connect().await;
    place.run(&mut floor, "BEGIN; SELECT 1 FROM @.meta WHERE name = 'fence_floor' FOR UPDATE").await;
    let purge = tokio::spawn(async move { cleaner.purge(100).await });
    place.until_waiting(1, "the purge").await;
    let claims = place.claims(&worker, &[key(1), key(2)]);
    place.until_waiting(2, "the claim").await;
    place.run(&mut floor, "COMMIT").await;

    let fences = claims.await.unwrap();
    assert!(fences[0] > behind, "{fences:?} after {behind}");
    assert!(fences[1] > ahead, "{fences:?} after {ahead}");
    assert_eq!(purge.await.unwrap().unwrap(), 1, "the row whose fence is behind the clock");
    assert_eq!(place.number("SELECT value FROM @.meta WHERE name = 'fence_floor'").await, behind);
}

/// A claim has read the clock, and waits for a rival's row of another key. Meanwhile its own key is claimed by another worker,
/// forgotten, and purged: the claim must not continue with the older time.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_began_before_its_key_was_claimed_forgotten_and_purged_has_a_larger_fence() {
    let place = Place::new();
    let (slow, other) = (place.store().await, place.store().await);
    claim(&other, &place.scope, &[key(9)]).await;

    let mut rival = place.connect().await;
    let sql = "BEGIN; INSERT INTO @.keys (scope, key, state, started, owner, fence, attempts, lost, generation, lease_until, \
               first_at, written_at, ttl, expires_at) \
               SELECT id, decode(repeat('01', 16), 'hex'), 1, false, decode(md5('owner'), 'hex'), 1, 0, 0, 0, 1, 1, 1, 1, 2 \
               FROM @.scopes";
    place.run(&mut rival, sql).await;
    // It takes the keys in their order: the rival's comes first.
    let claims = place.claims(&slow, &[key(1), key(2)]);
    place.until_waiting(1, "the claim").await;
    let earlier = claim(&other, &place.scope, &[key(2)]).await[0];
    assert!(other.forget(&place.scope, &[key(2)]).await.remove(0).unwrap());
    other.purge(100).await.unwrap();
    place.run(&mut rival, "ROLLBACK").await;

    let fences = claims.await.unwrap();
    assert!(fences[1] > earlier, "{fences:?} after {earlier}");
}

/// The clock was set back after a purge: the floor alone keeps fences growing, in claims of new keys and of known ones.
#[tokio::test(flavor = "multi_thread")]
async fn fences_grow_beyond_the_floor_where_the_clock_is_behind_it() {
    let place = Place::new();
    let store = place.store().await;
    claim(&store, &place.scope, &[key(9)]).await;
    place.expired(key(2), &format!("{NOW} - 10")).await;
    // As a purge leaves it that removed a record with such a fence, an hour of clock ago.
    let sql = format!("UPDATE @.meta SET value = {NOW} + {HOUR} WHERE name = 'fence_floor'");
    place.run(&mut place.connect().await, &sql).await;
    let floor = place.number("SELECT value FROM @.meta WHERE name = 'fence_floor'").await;
    let fences = claim(&store, &place.scope, &[key(1), key(2)]).await;
    assert!(fences.iter().all(|fence| *fence > floor), "{fences:?} with floor {floor}");
}
