//! The end of a handler's transaction: completion and commit in one message, and each way in which it is refused.

use std::time::Duration;

use onceward::adapter::StoreAdmin;
use onceward::store::{
    Claim, ClaimRequest, ClaimTerms, Commit, CompleteRequest, Entropy, KeyState, TransactionalStore,
};
use onceward::{Error, ErrorKind, Key, Scope, Store};
use onceward_postgres::{PgOptions, PgStore, PgTx};
use onceward_test_servers::postgres::Postgres;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

const TTL: Duration = Duration::from_secs(3_600);

/// A store whose handlers write through a pool of the application's own, of one connection.
struct Scene {
    schema: &'static str,
    pool: PgPool,
    store: PgStore,
    scope: Scope,
}

impl Scene {
    async fn new(schema: &'static str) -> Self {
        let server = Postgres::shared();
        let options = PgPoolOptions::new().max_connections(1);
        let pool = options.connect(&server.url("postgres")).await.unwrap();
        let store = PgStore::from_client(pool.clone(), {
            let mut options = PgOptions::default();
            options.schema = schema.into();
            options
        })
        .await
        .unwrap();
        let scene = Self { schema, pool, store, scope: Scope::parse("billing").unwrap() };
        scene.sql(
            "CREATE TABLE @.known (n int PRIMARY KEY); INSERT INTO @.known VALUES (1); \
             CREATE TABLE @.effects (n int REFERENCES @.known DEFERRABLE INITIALLY DEFERRED)",
        );
        scene
    }

    fn sql(&self, sql: &str) -> String {
        Postgres::shared().sql(&sql.replace('@', self.schema))
    }

    async fn claim(&self, name: &str) -> CompleteRequest {
        let key = Key::of(&self.scope, name).unwrap();
        let owner = Entropy::system().token();
        let request = ClaimRequest { key, owner, fingerprint: None, generation: 0 };
        let terms = ClaimTerms { lease: Duration::from_secs(60), ttl: TTL, max_attempts: 5 };
        match self.store.claim(&self.scope, &terms, &[request]).await.remove(0).unwrap() {
            Claim::Claimed(claimed) => CompleteRequest::new(claimed.lease, TTL),
            other => panic!("{other:?}"),
        }
    }

    async fn write(&self, n: i32, tx: &mut PgTx<'_>) {
        let sql = format!("INSERT INTO {}.effects VALUES ({n})", self.schema);
        (&mut **tx).execute(AssertSqlSafe(sql)).await.unwrap();
    }

    /// An effect, what else the handler does, and the commit.
    async fn run(
        &self,
        request: &CompleteRequest,
        n: i32,
        handler: impl AsyncFnOnce(&mut PgTx<'_>),
    ) -> Result<Commit, Error> {
        let mut open = self.store.begin().await.unwrap();
        let mut tx = self.store.lend(&mut open);
        self.write(n, &mut tx).await;
        handler(&mut tx).await;
        self.store.commit(open, &self.scope, request).await
    }

    async fn completed(&self) -> u64 {
        self.store.stats(&self.scope).await.unwrap().get(KeyState::Completed)
    }
}

#[tokio::test]
async fn the_connection_goes_back_to_its_pool_without_a_transaction() {
    let scene = Scene::new("goes_back").await;
    for n in 0..3 {
        let request = scene.claim(&n.to_string()).await;
        assert_eq!(scene.run(&request, 1, async |_| {}).await.unwrap(), Commit::Committed);
        // It is the same connection, and what begins on it is a transaction, not a savepoint in one.
        let mut own = scene.pool.begin().await.unwrap();
        let begins = "SELECT pg_current_xact_id_if_assigned() IS NULL AND \
                      coalesce(current_setting('onceward.inbox', true), '') = ''";
        assert!(sqlx::query_scalar::<_, bool>(begins).fetch_one(&mut *own).await.unwrap());
        own.execute(AssertSqlSafe(format!("INSERT INTO {}.effects VALUES (1)", scene.schema))).await.unwrap();
        own.commit().await.unwrap();
        assert_eq!(scene.sql("SELECT count(*) FROM @.effects"), (2 * (n + 1)).to_string());
    }
    assert_eq!((scene.completed().await, scene.pool.size()), (3, 1));
}

#[tokio::test]
async fn what_the_commit_refuses_is_an_error_of_its_own_and_no_lost_claim() {
    let scene = Scene::new("refuses").await;
    let request = scene.claim("unknown").await;
    let error = scene.run(&request, 2, async |_| {}).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("rejected"), "{error:?}");
    assert_eq!(scene.sql("SELECT count(*) FROM @.effects"), "0");
    assert_eq!(scene.completed().await, 0);
    assert_eq!(scene.run(&request, 1, async |_| {}).await.unwrap(), Commit::Committed, "it is held still");
    assert_eq!(scene.run(&request, 1, async |_| {}).await.unwrap(), Commit::Fenced, "it is not any more");
    assert_eq!(scene.sql("SELECT count(*) FROM @.effects"), "1");
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_itself_is_told_so_and_completes_nothing() {
    let scene = Scene::new("ends").await;
    for (n, sql) in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"].into_iter().enumerate() {
        let request = scene.claim(&n.to_string()).await;
        let ended = scene.run(&request, 1, async |tx| {
            (&mut **tx).execute(sql).await.unwrap();
        });
        let error = ended.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{sql}");
        assert!(error.to_string().contains("ended the transaction itself"), "{sql}: {error}");
        assert_eq!(scene.completed().await, 0, "{sql}");
    }
}

#[tokio::test]
async fn a_transaction_left_open_or_failed_is_not_committed() {
    let scene = Scene::new("left_open").await;
    let request = scene.claim("nested").await;
    let nested = scene.run(&request, 1, async |tx| std::mem::forget(tx.begin().await.unwrap())).await;
    assert!(nested.unwrap_err().to_string().contains("nested transaction"));
    let failed =
        scene.run(&request, 1, async |tx| drop((&mut **tx).execute("SELECT 1 / 0").await.unwrap_err()));
    assert!(failed.await.unwrap_err().to_string().contains("an earlier statement in the transaction failed"));
    assert_eq!(scene.sql("SELECT count(*) FROM @.effects"), "0");
    assert_eq!(scene.run(&request, 1, async |_| {}).await.unwrap(), Commit::Committed);
}
