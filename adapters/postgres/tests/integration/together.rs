//! Many effects in one transaction, each in a savepoint of its own.

use std::time::Duration;

use onceward::adapter::StoreAdmin;
use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Entropy, KeyState};
use onceward::{HandlerError, Key, Scope, Store};
use onceward_postgres::{EffectOutcome, PgConfig, PgStore, PgTx};
use onceward_test_servers::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection as _};

const TTL: Duration = Duration::from_secs(3_600);

struct Scene {
    schema: &'static str,
    store: PgStore,
    scope: Scope,
}

impl Scene {
    async fn new(schema: &'static str, constraint: &str) -> Self {
        let server = Postgres::shared();
        let mut config = PgConfig::new(server.url("postgres"));
        config.options.schema = schema.into();
        let store = PgStore::open(config).await.unwrap();
        server.sql(&format!("CREATE TABLE {schema}.effects (n bigint NOT NULL {constraint})"));
        Self { schema, store, scope: Scope::parse("billing").unwrap() }
    }

    async fn claims(&self, count: usize) -> Vec<CompleteRequest> {
        let mut entropy = Entropy::system();
        let request = |n: usize| ClaimRequest {
            key: Key::of(&self.scope, format!("order {n}")).unwrap(),
            owner: entropy.token(),
            fingerprint: None,
            generation: 0,
        };
        let requests: Vec<_> = (0..count).map(request).collect();
        let terms = ClaimTerms { lease: Duration::from_secs(60), ttl: TTL, max_attempts: 5 };
        let claims = self.store.claim(&self.scope, &terms, &requests).await;
        let completion = |claim| match claim {
            Ok(Claim::Claimed(claimed)) => CompleteRequest::new(claimed.lease, TTL),
            other => panic!("{other:?}"),
        };
        claims.into_iter().map(completion).collect()
    }

    async fn write(&self, n: usize, tx: &mut PgTx<'_>) -> Result<(), HandlerError> {
        let sql = format!("INSERT INTO {}.effects VALUES ($1)", self.schema);
        sqlx::query(AssertSqlSafe(sql)).bind(i64::try_from(n).unwrap()).execute(&mut **tx).await?;
        Ok(())
    }

    fn sql(&self, sql: &str) -> String {
        Postgres::shared().sql(&sql.replace('@', self.schema))
    }

    async fn completed(&self) -> u64 {
        self.store.stats(&self.scope).await.unwrap().get(KeyState::Completed)
    }
}

#[tokio::test]
async fn a_failing_effect_takes_no_other_with_it_and_all_others_are_one_transaction() {
    let scene = Scene::new("savepoints", "CHECK (n <> 2)").await;
    let requests = scene.claims(8).await;
    let outcomes = scene.store.commit_together(&scene.scope, &requests, async |n, mut tx: PgTx<'_>| {
        scene.write(n, &mut tx).await?;
        match n {
            // After its effect, in a nested transaction, and with a statement's failure swallowed.
            4 => Err(HandlerError::retry("no")),
            5 => {
                let mut nested = tx.begin().await?;
                sqlx::query("SELECT 1").execute(&mut *nested).await?;
                std::mem::forget(nested);
                Ok(())
            }
            6 => {
                let _ = sqlx::query("SELECT 1 / 0").execute(&mut *tx).await;
                Ok(())
            }
            _ => Ok(()),
        }
    });
    let outcomes = outcomes.await.unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        let is_fine = matches!(outcome, EffectOutcome::Committed);
        assert_eq!(is_fine, ![2, 4, 5, 6].contains(&n), "{n}: {outcome:?}");
        assert!(is_fine || matches!(outcome, EffectOutcome::Failed(_)), "{n}: {outcome:?}");
    }
    assert_eq!(scene.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM @.effects"), "0,1,3,7");
    assert_eq!(scene.completed().await, 4);
    // Completions have the number of the one transaction; rows in savepoints have numbers of their own.
    assert_eq!(scene.sql("SELECT count(DISTINCT xmin::text) FROM @.keys WHERE state = 4"), "1");
}

#[tokio::test]
async fn a_lost_claim_among_them_commits_nothing_and_the_others_all_the_same() {
    let scene = Scene::new("lost_one", "").await;
    let requests = scene.claims(5).await;
    let mut runs = 0;
    let outcomes = scene.store.commit_together(&scene.scope, &requests, async |n, mut tx: PgTx<'_>| {
        runs += 1;
        if n == 4 && runs == 5 {
            assert!(scene.store.forget(&scene.scope, &[requests[3].lease.key]).await.remove(0).unwrap());
        }
        scene.write(n, &mut tx).await
    });
    let outcomes = outcomes.await.unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        let expected = if n == 3 { "Fenced" } else { "Committed" };
        assert_eq!(format!("{outcome:?}"), expected, "{n}");
    }
    assert_eq!(scene.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM @.effects"), "0,1,2,4");
    assert_eq!((runs, scene.completed().await), (10, 4));
}

#[tokio::test]
async fn what_only_the_commit_refuses_is_found_by_running_each_alone() {
    let scene = Scene::new("deferred", "").await;
    scene.sql("CREATE TABLE @.known (n bigint PRIMARY KEY); INSERT INTO @.known VALUES (0), (1), (3)");
    scene.sql("ALTER TABLE @.effects ADD FOREIGN KEY (n) REFERENCES @.known DEFERRABLE INITIALLY DEFERRED");
    let requests = scene.claims(4).await;
    let effect = async |n, mut tx: PgTx<'_>| scene.write(n, &mut tx).await;
    let outcomes = scene.store.commit_together(&scene.scope, &requests, effect).await.unwrap();
    assert!(matches!(outcomes[2], EffectOutcome::Failed(_)), "{outcomes:?}");
    assert!([0, 1, 3].iter().all(|n| matches!(outcomes[*n], EffectOutcome::Committed)), "{outcomes:?}");
    assert_eq!(scene.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM @.effects"), "0,1,3");
    assert_eq!(scene.completed().await, 3);
}
