//! `complete(token)`: a handler of any language completes its claim in a transaction of its own.

use std::time::Duration;

use onceward::adapter::StoreAdmin;
use onceward::store::{
    Claim, ClaimRequest, ClaimTerms, Claimed, CompleteRequest, Completion, Entropy, KeyState,
};
use onceward::{Key, Scope, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const TTL: Duration = Duration::from_secs(3_600);

struct Scene {
    schema: &'static str,
    store: PgStore,
    scope: Scope,
    app: PgConnection,
}

impl Scene {
    /// A role of the application's that has what the grants list, and a table of its own.
    async fn new(schema: &'static str) -> Self {
        let server = Postgres::shared();
        let mut config = PgConfig::new(server.url("postgres"));
        config.options.schema = schema.into();
        let store = PgStore::open(config.clone()).await.unwrap();
        let role = format!("{schema}_app");
        let grants = PgStore::handler_grants(&config.options, &role).unwrap();
        server.sql(&format!(
            "CREATE ROLE {role} LOGIN; {grants} CREATE TABLE public.{schema} (n int); \
             GRANT SELECT, INSERT ON public.{schema} TO {role};"
        ));
        let app = PgConnection::connect(&server.url(&role)).await.unwrap();
        Self { schema, store, scope: Scope::parse("billing").unwrap(), app }
    }

    async fn claim(&self, name: &str, lease: Duration) -> Claimed {
        let key = Key::of(&self.scope, name).unwrap();
        let owner = Entropy::system().token();
        let request = ClaimRequest { key, owner, fingerprint: None, generation: 0 };
        let terms = ClaimTerms { lease, ttl: TTL, max_attempts: 5 };
        match self.store.claim(&self.scope, &terms, &[request]).await.remove(0).unwrap() {
            Claim::Claimed(claimed) => claimed,
            other => panic!("{other:?}"),
        }
    }

    /// An effect and its completion, as a handler writes them; the error's code if it fails.
    async fn commit(&mut self, token: &str) -> Result<(), String> {
        let schema = self.schema;
        let code = |error: sqlx::Error| {
            error.as_database_error().and_then(|error| Some(error.code()?.into_owned())).unwrap_or_default()
        };
        let mut open = self.app.begin().await.unwrap();
        let effect = format!("INSERT INTO public.{schema} VALUES (1)");
        sqlx::query(AssertSqlSafe(effect)).execute(&mut *open).await.unwrap();
        let complete = format!("SELECT {schema}.complete($1)");
        sqlx::query(AssertSqlSafe(complete)).bind(token).execute(&mut *open).await.map_err(code)?;
        let commits: String =
            sqlx::query_scalar("SHOW synchronous_commit").fetch_one(&mut *open).await.unwrap();
        assert_eq!(commits, "on");
        open.commit().await.map_err(code)
    }

    async fn effects(&mut self) -> i64 {
        let sql = format!("SELECT count(*) FROM public.{}", self.schema);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.app).await.unwrap()
    }
}

fn token(claimed: &Claimed) -> String {
    let lease = claimed.lease;
    format!("{}{}{:016x}", lease.key, lease.owner.to_hex(), lease.fence)
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_effect_is_completed_once_and_the_pipelines_own_completion_finds_it() {
    let mut scene = Scene::new("done").await;
    sqlx::query("SET synchronous_commit = off").execute(&mut scene.app).await.unwrap();
    let claimed = scene.claim("order 1", MINUTE).await;
    scene.commit(&token(&claimed)).await.unwrap();
    let record = scene.store.inspect(&scene.scope, &claimed.lease.key).await.unwrap().unwrap();
    assert_eq!(record.state, KeyState::Completed);
    assert!(record.expires_in <= TTL && record.expires_in > TTL - MINUTE, "{record:?}");
    let request = CompleteRequest::new(claimed.lease, TTL);
    let told = scene.store.complete(&scene.scope, &[request]).await.remove(0).unwrap();
    assert_eq!(told, Completion::Repeated);

    // The request was delivered twice to the handler: the second transaction must not commit.
    assert_eq!(scene.commit(&token(&claimed)).await, Err("OW001".to_owned()));
    assert_eq!(scene.effects().await, 1);
}

#[tokio::test]
async fn a_claim_that_was_lost_or_never_was_commits_nothing() {
    let mut scene = Scene::new("lost").await;
    let late = scene.claim("order 1", Duration::from_millis(1)).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let newer = scene.claim("order 1", MINUTE).await;
    assert!(newer.lease.fence > late.lease.fence);
    assert_eq!(scene.commit(&token(&late)).await, Err("OW001".to_owned()));
    let released = scene.claim("order 2", MINUTE).await;
    assert!(scene.store.release(&scene.scope, &[released.lease]).await.remove(0).unwrap());
    assert_eq!(scene.commit(&token(&released)).await, Err("OW001".to_owned()));
    let mut foreign = token(&newer);
    foreign.replace_range(32..34, if &foreign[32..34] == "00" { "01" } else { "00" });
    assert_eq!(scene.commit(&foreign).await, Err("OW001".to_owned()));
    for wrong in ["", "not a token", &token(&newer)[1..]] {
        assert_eq!(scene.commit(wrong).await, Err("22023".to_owned()), "{wrong}");
    }
    assert_eq!(scene.effects().await, 0);
    scene.commit(&token(&newer)).await.unwrap();
    assert_eq!(scene.effects().await, 1);
}

#[tokio::test]
async fn a_lease_that_is_over_but_not_taken_still_counts() {
    let mut scene = Scene::new("slow").await;
    let claimed = scene.claim("order 1", Duration::from_millis(1)).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    scene.commit(&token(&claimed)).await.unwrap();
    assert_eq!(scene.effects().await, 1);
}

#[tokio::test]
async fn a_rollback_takes_the_completion_back_and_the_role_can_do_nothing_else() {
    let mut scene = Scene::new("back").await;
    let claimed = scene.claim("order 1", MINUTE).await;
    let mut open = scene.app.begin().await.unwrap();
    sqlx::query("SELECT back.complete($1)").bind(token(&claimed)).execute(&mut *open).await.unwrap();
    open.rollback().await.unwrap();
    let record = scene.store.inspect(&scene.scope, &claimed.lease.key).await.unwrap().unwrap();
    assert_eq!(record.state, KeyState::Pending);
    for sql in ["SELECT * FROM back.keys", "DELETE FROM back.keys", "SELECT * FROM back.scopes"] {
        let error = sqlx::query(sql).execute(&mut scene.app).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{sql}");
    }
}
