//! The SQL handler inside transactions of a real SQLite store.

use std::time::Duration;

use onceward::adapter::StoreAdmin as _;
use onceward::store::{Claim, ClaimRequest, ClaimTerms, Claimed, Commit, CompleteRequest, OwnerToken};
use onceward::{
    Handled, Key, Message, MessageBuilder, Store as _, TestRun, TransactionalStore as _, TxHandler as _,
    Verdict,
};
use onceward_sqlite::{SqliteConfig, SqliteSqlHandler, SqliteStore};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Executor as _, Row as _};

use crate::claimed::{FENCE, KEY, claimed, scope};

struct Database {
    store: SqliteStore,
    app: SqliteConnection,
    _dir: tempfile::TempDir,
}

impl Database {
    async fn with(schema: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("onceward.db");
        let store = SqliteStore::open(SqliteConfig::new(&path)).await.unwrap();
        let mut app = SqliteConnectOptions::new().filename(&path).foreign_keys(true).connect().await.unwrap();
        app.execute(schema).await.unwrap();
        Self { store, app, _dir: dir }
    }

    /// Runs the handler and rolls everything back.
    async fn run(&self, handler: &SqliteSqlHandler, message: MessageBuilder) -> Handled {
        let (_run, message) = claimed(message);
        let mut conn = self.store.begin().await.unwrap();
        let handled = handler.handle(message, self.store.lend(&mut conn)).await;
        self.store.rollback(conn).await;
        handled
    }

    /// Executes a statement under a claim of its own, and commits it with the completion.
    async fn run_committed(&self, statement: &str) {
        let handler = SqliteSqlHandler::new(statement).unwrap();
        let (held, _run, message) = claim(&self.store, "committed").await;
        let mut conn = self.store.begin().await.unwrap();
        handler.handle(message, self.store.lend(&mut conn)).await.unwrap();
        assert_eq!(commit(&self.store, conn, &held).await, Commit::Committed);
    }

    async fn count(&mut self) -> i64 {
        self.app.fetch_one("SELECT count(*) FROM charges").await.unwrap().get(0)
    }
}

async fn verdict(schema: &'static str, statement: &str, payload: &'static str) -> (Verdict, String) {
    let database = Database::with(schema).await;
    let handler = SqliteSqlHandler::new(statement).unwrap();
    handler.check(&database.store).await.unwrap();
    let error = database.run(&handler, Message::builder(payload)).await.unwrap_err();
    assert!(!error.is_outcome_unknown(), "the transaction is rolled back");
    (error.verdict(), error.text().to_owned())
}

#[tokio::test]
async fn a_statement_is_given_payload_key_attempt_and_fence() {
    let mut database = Database::with("CREATE TABLE charges (payload, kind, key, attempt, fence)").await;
    let handler = SqliteSqlHandler::new("INSERT INTO charges VALUES ($1, typeof($1), $2, $3, $4)").unwrap();
    let large = "ü\0".repeat(512 * 1024);
    for (payload, kind) in
        [(b"{}".to_vec(), "text"), (b"\xff\0".to_vec(), "blob"), (large.into_bytes(), "text")]
    {
        let (_run, message) = claimed(Message::builder(payload.clone()));
        let mut conn = database.store.begin().await.unwrap();
        handler.handle(message, database.store.lend(&mut conn)).await.unwrap();
        let mut tx = database.store.lend(&mut conn);
        let row = tx
            .fetch_one("SELECT CAST(payload AS BLOB), kind, key, attempt, fence FROM charges")
            .await
            .unwrap();
        assert!(row.get::<Vec<u8>, _>(0) == payload, "{kind}");
        assert_eq!(row.get::<String, _>(1), kind);
        assert_eq!(row.get::<String, _>(2), KEY);
        assert_eq!((row.get::<i64, _>(3), row.get::<i64, _>(4)), (2, i64::try_from(FENCE).unwrap()));
        database.store.rollback(conn).await;
    }
    assert_eq!(database.count().await, 0, "what is rolled back has not happened");
}

#[tokio::test]
async fn parameters_may_be_left_out_or_repeated_in_any_order() {
    let database = Database::with("CREATE TABLE charges (a, b, c)").await;
    let handler = SqliteSqlHandler::new("INSERT INTO charges VALUES ($4, $1, $4) RETURNING a").unwrap();
    let (_run, message) = claimed(Message::builder("x"));
    let mut conn = database.store.begin().await.unwrap();
    handler.handle(message, database.store.lend(&mut conn)).await.unwrap();
    let row = database.store.lend(&mut conn).fetch_one("SELECT a, b, c FROM charges").await.unwrap();
    let fence = i64::try_from(FENCE).unwrap();
    assert_eq!(
        (row.get::<i64, _>(0), row.get::<String, _>(1), row.get::<i64, _>(2)),
        (fence, "x".into(), fence)
    );
    database.store.rollback(conn).await;
}

/// Claims a key of the store, and puts a message under it.
async fn claim(store: &SqliteStore, name: &str) -> (Claimed, TestRun, Message) {
    let terms =
        ClaimTerms { lease: Duration::from_secs(30), max_attempts: 5, ttl: Duration::from_secs(3600) };
    let owner = OwnerToken::from_bytes([9; 16]);
    let key = Key::of(&scope(), name).unwrap();
    let request = ClaimRequest { key, owner, fingerprint: None, generation: 0 };
    let Claim::Claimed(claimed) = store.claim(&scope(), &terms, &[request]).await.remove(0).unwrap() else {
        panic!("the key is free");
    };
    let (run, message) = TestRun::start(&Message::builder(name.to_owned()).build(), &claimed);
    (claimed, run, message)
}

async fn commit(store: &SqliteStore, conn: onceward_sqlite::SqliteConn, claimed: &Claimed) -> Commit {
    let request = CompleteRequest::new(claimed.lease, Duration::from_secs(3600));
    store.commit(conn, &scope(), &request).await.unwrap()
}

#[tokio::test]
async fn effect_and_completion_are_committed_together_or_not_at_all() {
    let mut database = Database::with("CREATE TABLE charges (payload)").await;
    let handler = SqliteSqlHandler::new("INSERT INTO charges VALUES ($1)").unwrap();

    let (held, _run, message) = claim(&database.store, "order 1").await;
    let mut conn = database.store.begin().await.unwrap();
    handler.handle(message, database.store.lend(&mut conn)).await.unwrap();
    assert_eq!(commit(&database.store, conn, &held).await, Commit::Committed);
    assert_eq!(database.count().await, 1);

    let (lost, _run, message) = claim(&database.store, "order 2").await;
    database.store.forget(&scope(), &[lost.lease.key]).await.remove(0).unwrap();
    let mut conn = database.store.begin().await.unwrap();
    handler.handle(message, database.store.lend(&mut conn)).await.unwrap();
    assert_eq!(commit(&database.store, conn, &lost).await, Commit::Fenced);
    assert_eq!(database.count().await, 1, "the effect went with the claim");
}

#[tokio::test]
async fn what_the_data_can_never_satisfy_is_permanent() {
    for (schema, statement, payload, why) in [
        ("CREATE TABLE t (a UNIQUE); INSERT INTO t VALUES ('x')", "INSERT INTO t VALUES ($1)", "x", "UNIQUE"),
        (
            "CREATE TABLE t (a TEXT PRIMARY KEY); INSERT INTO t VALUES ('x')",
            "INSERT INTO t VALUES ($1)",
            "x",
            "UNIQUE",
        ),
        ("CREATE TABLE t (a CHECK (a > 0))", "INSERT INTO t VALUES (CAST($1 AS INTEGER))", "-1", "CHECK"),
        ("CREATE TABLE t (a NOT NULL)", "INSERT INTO t VALUES (json_extract($1, '$.id'))", "{}", "NOT NULL"),
        ("CREATE TABLE t (a INTEGER) STRICT", "INSERT INTO t VALUES ($1)", "twelve", "cannot store TEXT"),
        (
            "CREATE TABLE t (a INTEGER PRIMARY KEY)",
            "INSERT INTO t VALUES ($1)",
            "twelve",
            "datatype mismatch",
        ),
        (
            "CREATE TABLE t (a)",
            "INSERT INTO t VALUES (json_extract($1, '$.id'))",
            "no json",
            "malformed JSON",
        ),
        (
            "CREATE TABLE t (a); CREATE TRIGGER r BEFORE INSERT ON t BEGIN SELECT RAISE(ABORT, 'too late'); END",
            "INSERT INTO t VALUES ($1)",
            "x",
            "too late",
        ),
    ] {
        let (verdict, text) = verdict(schema, statement, payload).await;
        assert!(text.contains(why), "{why}: {text}");
        assert_eq!(verdict, Verdict::Permanent, "{text}");
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let schema = "CREATE TABLE customers (id TEXT PRIMARY KEY); \
                  CREATE TABLE charges (customer TEXT REFERENCES customers)";
    let (verdict, text) = verdict(schema, "INSERT INTO charges VALUES ($1)", "c1").await;
    assert_eq!(verdict, Verdict::Retry, "the customer may come later: {text}");

    let mut database = Database::with("CREATE TABLE charges (a)").await;
    let handler = SqliteSqlHandler::new("INSERT INTO charges VALUES ($1)").unwrap();
    database.run(&handler, Message::builder("x")).await.unwrap();
    database.app.execute("ALTER TABLE charges RENAME TO old").await.unwrap();
    let error = database.run(&handler, Message::builder("x")).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Retry, "{error}");
    assert!(error.text().contains("no such table"), "{error}");
}

#[tokio::test]
async fn a_failed_statement_leaves_the_transaction_to_the_pipeline() {
    let mut database =
        Database::with("CREATE TABLE charges (a UNIQUE); INSERT INTO charges VALUES ('x')").await;
    let handler = SqliteSqlHandler::new("INSERT OR ROLLBACK INTO charges VALUES ($1)").unwrap();
    let error = database.run(&handler, Message::builder("x")).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Permanent);
    database.run(&handler, Message::builder("y")).await.unwrap();
    assert_eq!(database.count().await, 1);
}

#[tokio::test]
async fn a_statement_that_does_not_compile_is_found_at_start() {
    let database = Database::with("CREATE TABLE charges (a)").await;
    for (statement, why) in [
        ("INSERT INTO chagres VALUES ($1)", "no such table"),
        ("INSERT INTO charges VALUES ($1", "incomplete input"),
        ("INSERT INTO charges VALEUS ($1)", "syntax error"),
        ("INSERT INTO charges VALUES ($1, $2)", "has 1 columns but 2 values"),
    ] {
        let error = SqliteSqlHandler::new(statement).unwrap().check(&database.store).await.unwrap_err();
        assert!(!error.is_retryable() && format!("{error:?}").contains(why), "{error:?}");
    }
    let error = SqliteSqlHandler::new("SELECT 1").unwrap_err();
    assert!(error.to_string().contains("must begin with"), "{error}");
    let mut database = database;
    SqliteSqlHandler::new("DELETE FROM charges").unwrap().check(&database.store).await.unwrap();
    SqliteSqlHandler::new("INSERT INTO charges VALUES ($1)").unwrap().check(&database.store).await.unwrap();
    assert_eq!(database.count().await, 0, "a check executes nothing");
}

/// Counts for minutes.
const ENDLESS: &str = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 10000000000) \
                       INSERT INTO charges SELECT n FROM c WHERE n % 7 = 8";

/// Asserts that the writer is free and that its connection executes statements.
async fn assert_usable(database: &mut Database) {
    let usable = database.run_committed("INSERT INTO charges VALUES ($1)");
    tokio::time::timeout(Duration::from_secs(10), usable).await.expect("the store's writer is free");
    assert_eq!(database.count().await, 1);
}

#[tokio::test]
async fn a_cancelled_statement_ends_before_the_handler_returns() {
    let mut database = Database::with("CREATE TABLE charges (a)").await;
    let handler = SqliteSqlHandler::new(ENDLESS).unwrap();
    let (run, message) = claimed(Message::builder("x"));
    let mut conn = database.store.begin().await.unwrap();
    let handled = handler.handle(message, database.store.lend(&mut conn));
    let cancelled = async {
        // Long enough for the statement to be running; cancelled earlier, it must end the same way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        run.cancel();
    };
    let both = async { tokio::join!(handled, cancelled) };
    let (handled, ()) = tokio::time::timeout(Duration::from_secs(10), both).await.expect("it returns");
    let error = handled.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, false), "{error}");
    assert!(error.text().contains("cancelled"), "{error}");
    database.store.rollback(conn).await;
    assert_usable(&mut database).await;
}

#[tokio::test]
async fn a_dropped_statement_gives_the_writer_back() {
    let mut database = Database::with("CREATE TABLE charges (a)").await;
    let handler = SqliteSqlHandler::new(ENDLESS).unwrap();
    let (_run, message) = claimed(Message::builder("x"));
    let mut conn = database.store.begin().await.unwrap();
    let handled = handler.handle(message, database.store.lend(&mut conn));
    tokio::time::timeout(Duration::from_millis(50), handled).await.expect_err("it counts for minutes");
    drop(conn);
    assert_usable(&mut database).await;
}

#[tokio::test]
async fn a_run_cancelled_beforehand_executes_nothing() {
    let database = Database::with("CREATE TABLE charges (a UNIQUE); INSERT INTO charges VALUES ('x')").await;
    let handler = SqliteSqlHandler::new("INSERT INTO charges VALUES ($1)").unwrap();
    let (run, message) = claimed(Message::builder("x"));
    run.cancel();
    let mut conn = database.store.begin().await.unwrap();
    let error = handler.handle(message, database.store.lend(&mut conn)).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Retry, "{error}");
    assert_eq!(error.text(), "cancelled before the statement was executed");
}
