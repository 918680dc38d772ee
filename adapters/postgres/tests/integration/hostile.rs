//! A server shared with a hostile role: look-alikes of all that a statement may name stand before `pg_catalog` in every
//! session's `search_path`, and none is ever called. On all supported releases with `SLOW=1`, on the oldest, the newest and the
//! installed one otherwise.

use std::sync::Arc;
use std::time::Duration;

use onceward::adapter::{Checkpoint, CheckpointStore, Expiring, StoreAdmin};
use onceward::outbox::{OutboxStore, Relay, RelayConfig};
use onceward::store::{
    BuryRequest, Claim, Commit, Entropy, FailRequest, KeyMark, ListQuery, LogPartition, MarkRequest,
    MarkedCommit, MarkedKey, Ownership, PositionStore, Reason, RedriveRequest, RenewRequest, Renewal,
    TransactionalStore,
};
use onceward::testing::MemoryPublisher;
use onceward::{Outgoing, Store};
use onceward_postgres::{EffectOutcome, PgConfig, PgOptions, PgStore};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::releases::MAJORS;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection};

use crate::store::{TTL, completion, key, lease, requests, scope, terms};

const TRAP: &str = include_str!("../support/trap.sql");

/// What a session may put before everything else by itself.
const TEMPORARY: &str = "CREATE TEMP TABLE keys (n int); CREATE TEMP TABLE meta (n int); \
    CREATE DOMAIN pg_temp.bytea AS pg_catalog.bytea CHECK (trap.spring('temporary type bytea')); \
    CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (trap.spring('temporary type text'))";

/// The statements that the trap is to catch, one for each way of naming something.
const CAUGHT: [&str; 6] = [
    "SELECT 1 = 1",
    "SELECT extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000",
    "SELECT 1 IN (1, 2)",
    "SELECT 'x'::text",
    "SELECT count(*) FROM pg_catalog.pg_class",
    "SELECT hashtextextended('x', 7::bigint)",
];

/// Roles on a server with a trap: `dba` migrates, `worker` and `app` have the documented rights.
struct Scene {
    server: Postgres,
}

impl Scene {
    fn new(server: Postgres) -> Self {
        server.sql(TRAP);
        server.sql(
            "CREATE ROLE dba SUPERUSER LOGIN; CREATE ROLE worker LOGIN; CREATE ROLE app LOGIN; \
             CREATE TABLE public.effects (n bigint NOT NULL); GRANT INSERT ON public.effects TO worker, app",
        );
        for role in ["dba", "worker", "app"] {
            server.sql(&format!("ALTER ROLE {role} SET search_path = trap, pg_catalog"));
        }
        Self { server }
    }

    fn config(&self, role: &str) -> PgConfig {
        {
            let mut config = PgConfig::new(self.server.url(role));
            config.options.migrate = false;
            config
        }
    }

    async fn migrate(&self) {
        assert!(PgStore::migrate(&self.config("dba")).await.unwrap() > 0);
        let config = self.config("dba");
        let (worker, app) = (
            PgStore::grants(&config.options, "worker").unwrap(),
            PgStore::handler_grants(&config.options, "app").unwrap(),
        );
        self.server.sql(&format!(
            "{worker}{app} GRANT INSERT ON onceward.outbox TO app; GRANT USAGE ON SEQUENCE onceward.outbox_seq TO app"
        ));
    }

    fn is_sprung(&self) -> bool {
        self.server.sql("SELECT is_called FROM trap.loot") == "t"
    }

    /// The application's own pool, whose sessions have temporary objects as well.
    async fn pool(&self) -> PgPool {
        let options = PgPoolOptions::new().max_connections(4).after_connect(|conn, _| {
            Box::pin(async move { conn.execute(sqlx::raw_sql(TEMPORARY)).await.map(drop) })
        });
        options.connect(&self.server.url("worker")).await.unwrap()
    }
}

async fn claimed(store: &PgStore, n: u32) -> onceward::store::Lease {
    lease(&store.claim(&scope(), &terms(), &requests([n])).await.remove(0).unwrap())
}

/// Everything that runs on the store's own sessions.
async fn use_keys(store: &PgStore) {
    let all = (0..20).collect::<Vec<_>>();
    let claims = store.claim(&scope(), &terms(), &requests(all)).await;
    let leases: Vec<_> = claims.into_iter().map(|claim| lease(&claim.unwrap())).collect();
    let renew = RenewRequest { lease: leases[0], lease_for: Duration::from_secs(60), started: true };
    assert_eq!(store.renew(&scope(), &[renew]).await.remove(0).unwrap(), Renewal::Renewed);
    store.complete(&scope(), &leases[..10].iter().map(|lease| completion(*lease)).collect::<Vec<_>>()).await;
    // Completed again, under row locks.
    store.complete(&scope(), &[completion(leases[0])]).await.remove(0).unwrap();
    let failed = FailRequest { lease: leases[10], error: "e".into(), terminal: None };
    store.fail(&scope(), &[failed]).await.remove(0).unwrap();
    let terminal = FailRequest { lease: leases[11], error: "e".into(), terminal: Some(Reason::Permanent) };
    store.fail(&scope(), &[terminal]).await.remove(0).unwrap();
    store.bury(&scope(), &[BuryRequest { lease: leases[11], ttl: TTL }]).await.remove(0).unwrap();
    let redrive = RedriveRequest { key: leases[11].key, generation: 0, ttl: TTL };
    store.redrive(&scope(), &[redrive]).await.remove(0).unwrap();
    assert!(store.release(&scope(), &[leases[12]]).await.remove(0).unwrap());
    assert!(store.forget(&scope(), &[leases[0].key]).await.remove(0).unwrap());
    let again = store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap();
    assert!(matches!(again, Claim::Completed { .. }), "{again:?}");
    assert!(store.inspect(&scope(), &key(1)).await.unwrap().is_some());
    assert!(
        !store.list(&scope(), &ListQuery { state: None, after: None, limit: 100 }).await.unwrap().is_empty()
    );
    store.stats(&scope()).await.unwrap();
    store.purge(100).await.unwrap();
    store.expiry_lag().await.unwrap();
    let checkpoint = Checkpoint { incarnation: "i".into(), offset: 7, evidence: "e".into() };
    store.save_checkpoint(&scope(), "file", &checkpoint).await.unwrap();
    assert_eq!(store.load_checkpoint(&scope(), "file").await.unwrap(), Some(checkpoint));
}

/// Rows that others hold: they are passed over.
async fn meet_locks(scene: &Scene, store: &PgStore) {
    let mut rival = PgConnection::connect(&scene.server.url("postgres")).await.unwrap();
    let mut open = rival.begin().await.unwrap();
    open.execute("SELECT * FROM onceward.keys FOR UPDATE").await.unwrap();
    // A key that was released.
    let answers = store.claim(&scope(), &terms(), &requests([12, 100, 101])).await;
    assert!(matches!(answers[0], Ok(Claim::InProgress { .. })), "{answers:?}");
    let _ = (lease(answers[1].as_ref().unwrap()), lease(answers[2].as_ref().unwrap()));
    open.rollback().await.unwrap();
}

const EFFECT: &str = "INSERT INTO public.effects VALUES (1)";

/// Transactions on sessions whose `search_path` is the application's.
async fn use_transactions(store: &PgStore, from: u32) {
    // One effect, with a message that goes out.
    let held = claimed(store, from).await;
    let mut open = store.begin().await.unwrap();
    let mut tx = store.lend(&mut open);
    tx.execute(EFFECT).await.unwrap();
    tx.outbox_all(&[message(), Outgoing { order_key: None, ..message() }]).await.unwrap();
    assert_eq!(store.commit(open, &scope(), &completion(held)).await.unwrap(), Commit::Committed);
    // Several that share a transaction.
    let held: Vec<_> =
        [claimed(store, from + 1).await, claimed(store, from + 2).await].map(completion).into();
    let effect = async |_, mut tx: onceward_postgres::PgTx<'_>| {
        tx.execute(EFFECT).await?;
        Ok(())
    };
    let done = store.commit_together(&scope(), &held, effect).await.unwrap();
    assert!(done.iter().all(|one| matches!(one, EffectOutcome::Committed)), "{done:?}");
    // Positions: with keys that are new, and known, and with a claim.
    let partition = LogPartition { group: "g".into(), incarnation: "i".into(), partition: from };
    let owner = store.own(&scope(), &partition).await.unwrap();
    mark(store, &owner, &[from + 10, from + 11], 4, MarkedKey::Fresh).await;
    mark(store, &owner, &[from + 10], 0, MarkedKey::Completed).await;
    let failed = claimed(store, from + 12).await;
    let failure = FailRequest { lease: failed, error: "e".into(), terminal: None };
    store.fail(&scope(), &[failure]).await.remove(0).unwrap();
    mark(store, &owner, &[from + 12], 1, MarkedKey::Fresh).await;
    let held = claimed(store, from + 13).await;
    let mut open = store.begin().await.unwrap();
    store.lend(&mut open).execute(EFFECT).await.unwrap();
    let position = at(&owner, 2);
    let committed = store.commit_at(open, &scope(), &position, Some(&completion(held))).await.unwrap();
    assert_eq!(committed, MarkedCommit::Committed);
    let open = store.begin().await.unwrap();
    assert_eq!(store.commit_at(open, &scope(), &position, None).await.unwrap(), MarkedCommit::Processed);
}

fn at(owner: &Ownership, offset: u64) -> MarkRequest {
    let Ownership { partition, epoch, .. } = owner.clone();
    MarkRequest { partition, epoch, offsets: vec![offset], floor: 0 }
}

async fn mark(store: &PgStore, owner: &Ownership, keys: &[u32], offset: u64, expected: MarkedKey) {
    let mut entropy = Entropy::system();
    let marks = keys.iter().map(|n| KeyMark { key: key(*n), owner: entropy.token(), fingerprint: None });
    let marks: Vec<_> = marks.collect();
    let open = store.begin().await.unwrap();
    let (mut open, found) = store.mark_keys(open, &scope(), TTL, &marks).await.unwrap();
    assert!(found.iter().all(|one| *one == expected), "{found:?}");
    store.lend(&mut open).execute(EFFECT).await.unwrap();
    let committed = store.commit_at(open, &scope(), &at(owner, offset), None).await.unwrap();
    assert_eq!(committed, MarkedCommit::Committed);
}

fn message() -> Outgoing {
    Outgoing {
        destination: "there".into(),
        order_key: Some("account".into()),
        headers: vec![("a".into(), "b".into())],
        payload: "x".into(),
        ..Outgoing::default()
    }
}

/// What an application does in transactions of its own.
async fn use_connection(scene: &Scene, store: &PgStore, n: u32) {
    let mut app = PgConnection::connect(&scene.server.url("app")).await.unwrap();
    app.execute(sqlx::raw_sql(TEMPORARY)).await.unwrap();
    let held = claimed(store, n).await;
    let mut open = app.begin().await.unwrap();
    open.execute(EFFECT).await.unwrap();
    store.outbox().put(&mut open, &[message()]).await.unwrap();
    open.execute(
        "INSERT INTO onceward.outbox (destination, order_key, payload) VALUES ('there', '\\x61', '\\x62')",
    )
    .await
    .unwrap();
    store.complete_within(&mut open, held).await.unwrap();
    open.commit().await.unwrap();
}

async fn relay(store: &PgStore, sent: usize) {
    let broker = MemoryPublisher::new();
    let relay = Relay::new(store.outbox(), Arc::new(broker.clone()), RelayConfig::default()).unwrap();
    relay.run_until_idle().await.unwrap();
    assert_eq!(broker.sent().len(), sent);
    store.outbox().wait(Duration::from_millis(200)).await;
    store.outbox().status().await.unwrap();
    store.outbox().clean(Duration::ZERO, 100).await.unwrap();
}

async fn nothing_of_a_hostile_role_is_called(server: Postgres) {
    let scene = Scene::new(server);
    scene.migrate().await;
    let own = PgStore::open(scene.config("worker")).await.unwrap();
    let borrowed = PgStore::from_client(scene.pool().await, {
        let mut options = PgOptions::default();
        options.migrate = false;
        options
    })
    .await
    .unwrap();
    use_keys(&own).await;
    meet_locks(&scene, &own).await;
    use_transactions(&own, 200).await;
    use_transactions(&borrowed, 300).await;
    use_connection(&scene, &own, 400).await;
    relay(&own, 6).await;
    for store in [&own, &borrowed] {
        store.check().await.unwrap();
    }
    assert_eq!(PgStore::missing_migrations(&scene.config("worker")).await.unwrap(), 0);
    assert!(!scene.is_sprung());
    assert_eq!(scene.server.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'evil'"), "f");
    assert_eq!(scene.server.sql("SELECT count(*) FROM public.effects"), "15");
    // The trap is where it should be: each way of naming something falls into it.
    let mut worker = PgConnection::connect(&scene.server.url("worker")).await.unwrap();
    for statement in CAUGHT {
        let error = worker.execute(statement).await.unwrap_err().to_string();
        assert!(error.contains("trapped by"), "{statement}: {error}");
    }
    assert!(scene.is_sprung());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_hostile_role_is_called_on_the_installed_server() {
    let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    nothing_of_a_hostile_role_is_called(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_hostile_role_is_called_on_other_releases() {
    let all = std::env::var_os("SLOW").is_some_and(|slow| !slow.is_empty());
    for major in MAJORS.into_iter().filter(|major| all || [13, 18].contains(major)) {
        let server = tokio::task::spawn_blocking(move || Postgres::start_major(major)).await.unwrap();
        nothing_of_a_hostile_role_is_called(server).await;
    }
}
