//! A store behind PgBouncer: in session mode it works without any setting of the pooler, in transaction mode it is refused
//! by name.

use onceward::Store;
use onceward::store::{AdviceLevel, Claim, Commit, Completion, TransactionalStore};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::pgbouncer::PgBouncer;
use onceward_test_servers::postgres::Postgres;

use crate::store::{completion, lease, requests, scope, terms};

#[tokio::test(flavor = "multi_thread")]
async fn session_mode_works_with_the_poolers_defaults_and_keeps_the_timeouts() {
    let server = Postgres::start();
    let pooler = PgBouncer::start(&server, &["pool_mode = session"]);
    let url = Postgres::url_at(pooler.address(), "postgres");
    let store = PgStore::open(PgConfig::new(&url)).await.unwrap();
    let advice = store.check().await.unwrap();
    // Of its warnings, one is about the standby that there is not.
    assert!(advice.iter().all(|line| line.level != AdviceLevel::Error), "{advice:?}");
    let first = lease(&store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap());
    let done = store.complete(&scope(), &[completion(first)]).await.remove(0);
    assert!(matches!(done, Ok(Completion::Completed)), "{done:?}");
    let second = lease(&store.claim(&scope(), &terms(), &requests([2])).await.remove(0).unwrap());
    let open = store.begin().await.unwrap();
    assert_eq!(store.commit(open, &scope(), &completion(second)).await.unwrap(), Commit::Committed);

    let third = lease(&store.claim(&scope(), &terms(), &requests([3])).await.remove(0).unwrap());
    assert!(store.release(&scope(), &[third]).await.remove(0).unwrap());

    // A lock is waited for no longer than the store's own setting says. Of a completed key none is waited for.
    let mut rival = <sqlx::PgConnection as sqlx::Connection>::connect(&server.url("postgres")).await.unwrap();
    let mut held = sqlx::Connection::begin(&mut rival).await.unwrap();
    sqlx::query("SELECT 1 FROM onceward.keys FOR UPDATE").execute(&mut *held).await.unwrap();
    let mut answers =
        store.claim(&scope(), &terms(), &requests([2, 3])).await.into_iter().map(Result::unwrap);
    assert!(matches!(answers.next(), Some(Claim::Completed { .. })));
    assert!(matches!(answers.next(), Some(Claim::InProgress { .. })));
    held.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_mode_is_recognised_and_refused() {
    let server = Postgres::start();
    PgStore::migrate(&PgConfig::new(server.url("postgres"))).await.unwrap();
    let pooler = PgBouncer::start(&server, &["pool_mode = transaction"]);
    let url = Postgres::url_at(pooler.address(), "postgres");
    let found = match PgStore::open(PgConfig::new(&url)).await {
        Ok(store) => match store.check().await {
            Ok(advice) => format!(
                "{:?}",
                advice.into_iter().filter(|line| line.level == AdviceLevel::Error).collect::<Vec<_>>()
            ),
            Err(error) => format!("{error:?}"),
        },
        Err(error) => format!("{error:?}"),
    };
    assert!(found.contains("session mode"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_startup_parameter_that_the_pooler_rejects_is_named() {
    let server = Postgres::start();
    let pooler = PgBouncer::start(&server, &["pool_mode = session"]);
    let url = format!("{}?options=-csearch_path%3Dpublic", Postgres::url_at(pooler.address(), "postgres"));
    let error = PgStore::open(PgConfig::new(&url)).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("startup parameter"), "{error:?}");
}
