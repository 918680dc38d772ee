//! The SQL handler inside transactions of a real Postgres store.

use std::time::Duration;

use onceward::adapter::StoreAdmin as _;
use onceward::store::{Claim, ClaimRequest, ClaimTerms, Commit, CompleteRequest, OwnerToken};
use onceward::{
    Handled, Key, Message, MessageBuilder, Store as _, TestRun, TransactionalStore as _, TxHandler as _,
    Verdict,
};
use onceward_postgres::{PgConfig, PgSqlHandler, PgStore};
use onceward_test_servers::postgres::Postgres;
use sqlx::AssertSqlSafe;

use crate::claimed::{FENCE, KEY, claimed, scope};

/// A schema of its own on the server that the tests share, for the store and the application alike.
struct Database {
    name: &'static str,
    store: PgStore,
}

impl Database {
    async fn with(name: &'static str, tables: &str) -> Self {
        Self::connect(name, tables, Duration::from_secs(20)).await
    }

    async fn connect(name: &'static str, tables: &str, limit: Duration) -> Self {
        let url = format!("{}?options=-csearch_path%3D{name}", Postgres::shared().url("postgres"));
        let mut config = PgConfig::new(&url);
        config.options.schema = name.into();
        config.options.handler_connections = Some(1);
        config.options.handler_statement_timeout = Some(limit);
        let store = PgStore::open(config).await.unwrap();
        Postgres::shared().sql(&format!("SET search_path = {name}; {tables}"));
        Self { name, store }
    }

    fn sql(&self, sql: &str) -> String {
        Postgres::shared().sql(&format!("SET search_path = {}; {sql}", self.name))
    }

    /// Runs the handler and rolls everything back.
    async fn run(&self, handler: &PgSqlHandler, message: MessageBuilder) -> Handled {
        let (_run, message) = claimed(message);
        let mut conn = self.store.begin().await.unwrap();
        let handled = handler.handle(message, self.store.lend(&mut conn)).await;
        self.store.rollback(conn).await;
        handled
    }

    /// What one statement answers about the parameters it is given.
    async fn told(&self, statement: &str, payload: &'static [u8], look: &str) -> String {
        let handler = PgSqlHandler::new(statement).unwrap();
        handler.check(&self.store).await.unwrap();
        let (_run, message) = claimed(Message::builder(payload));
        let mut conn = self.store.begin().await.unwrap();
        handler.handle(message, self.store.lend(&mut conn)).await.unwrap();
        let mut tx = self.store.lend(&mut conn);
        let look = AssertSqlSafe(look.to_owned());
        let found: String = sqlx::query_scalar(look).fetch_one(&mut *tx).await.unwrap();
        self.store.rollback(conn).await;
        found
    }
}

#[tokio::test]
async fn a_statement_is_given_payload_key_attempt_and_fence_as_the_types_its_places_have() {
    let database = Database::with(
        "places",
        "CREATE DOMAIN doc AS jsonb; CREATE TABLE t (a text, b jsonb, c json, d bytea, e doc, \
         k text, u uuid, n smallint, i integer, f bigint)",
    )
    .await;
    let look = "SELECT concat_ws('|', a, b->>'id', c->>'id', d, e->>'id', k, u, n, i, f) FROM t";
    for (column, expected) in [("a", r#"{"id": 7}"#), ("b", "7"), ("c", "7"), ("e", "7")] {
        let statement = format!("INSERT INTO t ({column}) VALUES ($1)");
        assert_eq!(database.told(&statement, br#"{"id": 7}"#, look).await, expected, "{column}");
    }
    assert_eq!(database.told("INSERT INTO t (d) VALUES ($1)", b"\xff\x00", look).await, "\\xff00");
    let all = "INSERT INTO t (a, k, n, f) VALUES ($1, $2, $3, $4)";
    assert_eq!(database.told(all, b"p", look).await, format!("p|{KEY}|2|{FENCE}"));
    // Those in front may be left out.
    let others = "INSERT INTO t (f, i, u) VALUES ($4, $3, $2)";
    let uuid = format!("{}-{}-{}-{}-{}", &KEY[..8], &KEY[8..12], &KEY[12..16], &KEY[16..20], &KEY[20..]);
    assert_eq!(database.told(others, b"p", look).await, format!("{uuid}|2|{FENCE}"));
    assert_eq!(database.sql("SELECT count(*) FROM t"), "0", "what is rolled back has not happened");
}

/// Claims a key of the store, and puts a message under it.
async fn claim(store: &PgStore, name: &str) -> (CompleteRequest, TestRun, Message) {
    let ttl = Duration::from_secs(3_600);
    let terms = ClaimTerms { lease: Duration::from_secs(30), max_attempts: 5, ttl };
    let key = Key::of(&scope(), name).unwrap();
    let request =
        ClaimRequest { key, owner: OwnerToken::from_bytes([9; 16]), fingerprint: None, generation: 0 };
    let Claim::Claimed(claimed) = store.claim(&scope(), &terms, &[request]).await.remove(0).unwrap() else {
        panic!("the key is free");
    };
    let (run, message) = TestRun::start(&Message::builder(name.to_owned()).build(), &claimed);
    (CompleteRequest::new(claimed.lease, ttl), run, message)
}

#[tokio::test]
async fn effect_and_completion_are_committed_together_or_not_at_all() {
    let database = Database::with(
        "together",
        "CREATE TABLE charges (payload text); CREATE FUNCTION charge(p text) RETURNS void LANGUAGE sql AS \
         'INSERT INTO charges VALUES (p)'",
    )
    .await;
    let handler = PgSqlHandler::new("SELECT charge($1)").unwrap();
    for (order, is_lost, expected) in
        [("order 1", false, Commit::Committed), ("order 2", true, Commit::Fenced)]
    {
        let (request, _run, message) = claim(&database.store, order).await;
        if is_lost {
            database.store.forget(&scope(), &[request.lease.key]).await.remove(0).unwrap();
        }
        let mut conn = database.store.begin().await.unwrap();
        handler.handle(message, database.store.lend(&mut conn)).await.unwrap();
        assert_eq!(database.store.commit(conn, &scope(), &request).await.unwrap(), expected);
        assert_eq!(database.sql("SELECT string_agg(payload, ',') FROM charges"), "order 1");
    }
}

#[tokio::test]
async fn what_the_data_can_never_satisfy_is_permanent_and_all_else_is_tried_again() {
    let tables = "CREATE TABLE t (a text UNIQUE CHECK (a <> 'no'), n int NOT NULL DEFAULT 1); \
         INSERT INTO t VALUES ('there'); CREATE TABLE f (a text REFERENCES t (a)); \
         CREATE FUNCTION late(p text, code text) RETURNS void LANGUAGE plpgsql AS \
         'BEGIN RAISE EXCEPTION ''too late'' USING ERRCODE = code; END'";
    let database = Database::with("verdicts", tables).await;
    for (statement, payload, why, expected) in [
        ("INSERT INTO t VALUES ($1)", "there", "unique constraint", Verdict::Permanent),
        ("INSERT INTO t VALUES ($1)", "no", "check constraint", Verdict::Permanent),
        ("INSERT INTO t VALUES ($1, NULL)", "x", "null value", Verdict::Permanent),
        ("INSERT INTO t VALUES ($1)", "a\0b", "invalid byte sequence", Verdict::Permanent),
        ("INSERT INTO t VALUES ($1::jsonb->>'id')", "{", "json", Verdict::Permanent),
        ("INSERT INTO t VALUES ('x', $1::text::int)", "twelve", "integer", Verdict::Permanent),
        ("SELECT late($1, 'P0001')", "x", "too late", Verdict::Permanent),
        ("SELECT late($1, '40001')", "x", "too late", Verdict::Unavailable),
        ("SELECT late($1, '40P01')", "x", "too late", Verdict::Unavailable),
        ("SELECT late($1, '53300')", "x", "too late", Verdict::Unavailable),
        ("SELECT late($1, '53200')", "x", "too late", Verdict::Retry),
        ("INSERT INTO f VALUES ($1)", "to come", "foreign key", Verdict::Retry),
    ] {
        let handler = PgSqlHandler::new(statement).unwrap();
        handler.check(&database.store).await.unwrap();
        let error = database.run(&handler, Message::builder(payload)).await.unwrap_err();
        assert!(error.text().contains(why), "{why}: {error}");
        assert_eq!((error.verdict(), error.is_outcome_unknown()), (expected, false), "{error}");
    }
}

#[tokio::test]
async fn a_table_that_changes_under_the_statement_costs_no_attempt() {
    let database = Database::with("changes", "CREATE TABLE t (a text)").await;
    let handler = PgSqlHandler::new("INSERT INTO t VALUES ($1) RETURNING *").unwrap();
    database.run(&handler, Message::builder("x")).await.unwrap();
    database.sql("ALTER TABLE t ADD COLUMN b int");
    let error = database.run(&handler, Message::builder("x")).await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    database.run(&handler, Message::builder("x")).await.unwrap();
    // What keeps every message from the statement is no message's fault.
    // Only the first time it shows in the execution, where a function of the statement may have met it for this message.
    database.sql("ALTER TABLE t RENAME TO away");
    database.run(&handler, Message::builder("x")).await.unwrap_err();
    for _ in 0..2 {
        let error = database.run(&handler, Message::builder("x")).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Unavailable, "{error}");
    }
    database.sql("ALTER TABLE away RENAME TO t");
    database.run(&handler, Message::builder("x")).await.unwrap();
}

#[tokio::test]
async fn a_deadlock_is_a_conflict_and_errors_name_no_line_of_the_servers_source() {
    let database = Database::with(
        "deadlock",
        "CREATE TABLE t (n int PRIMARY KEY, a text); INSERT INTO t VALUES (1, ''), (2, '')",
    )
    .await;
    let url = format!("{}?options=-csearch_path%3Ddeadlock", Postgres::shared().url("postgres"));
    let mut rival = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let mut open = sqlx::Connection::begin(&mut rival).await.unwrap();
    // The rival waits only for as long as it takes to be no victim itself.
    sqlx::raw_sql("SET deadlock_timeout = '1min'; UPDATE t SET a = 'x' WHERE n = 2")
        .execute(&mut *open)
        .await
        .unwrap();
    let both = "WITH one AS (SELECT n FROM t WHERE n = 1 FOR UPDATE), \
                two AS (SELECT t.n FROM t, one WHERE t.n = one.n + 1 FOR UPDATE OF t) SELECT $1, * FROM two";
    let handler = PgSqlHandler::new(both).unwrap();
    let run = database.run(&handler, Message::builder("x"));
    let crosses = async {
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'WITH one%'";
        while database.sql(waits) == "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sqlx::query("UPDATE t SET a = 'y' WHERE n = 1").execute(&mut *open).await.unwrap();
    };
    let (handled, ()) = tokio::join!(run, crosses);
    let error = handled.unwrap_err();
    assert!(error.is_conflict() && error.text().contains("deadlock detected"), "{error}");
    assert!(error.text().ends_with("(SQLSTATE 40P01)") && !error.text().contains("at line"), "{error}");
    assert_eq!(error.text().matches("deadlock").count(), 1, "{error}");
}

#[tokio::test]
async fn a_connection_that_is_lost_under_a_statement_costs_no_attempt_unless_it_is_always_this_one() {
    let database = Database::with("losses", "CREATE TABLE t (a text)").await;
    let dies = PgSqlHandler::new("SELECT $1, pg_terminate_backend(pg_backend_pid())").unwrap();
    let mut verdicts = Vec::new();
    for _ in 0..3 {
        verdicts.push(database.run(&dies, Message::builder("x")).await.unwrap_err().verdict());
    }
    assert_eq!(verdicts, [Verdict::Unavailable, Verdict::Unavailable, Verdict::Retry]);
}

#[tokio::test]
async fn a_statement_that_cannot_be_prepared_or_filled_is_found_at_start() {
    let database = Database::with("prepared", "CREATE TABLE charges (a text, n int, t timestamptz)").await;
    for (statement, why) in [
        ("INSERT INTO chagres VALUES ($1)", "does not exist, at character 13 of the statement"),
        ("INSERT INTO charges (a) VALUES ($1->>'id')", "$1 is the payload as text (write $1::jsonb"),
        ("INSERT INTO charges VALEUS ($1)", "syntax error"),
        ("INSERT INTO charges VALUES ($1); COMMIT", "multiple commands"),
        (
            "INSERT INTO charges (n) VALUES ($1)",
            "$1 is the payload, which cannot be of type INT4; write $1::jsonb",
        ),
        ("INSERT INTO charges (n) VALUES ($4)", "$4 is the fence, which cannot be of type INT4"),
        ("INSERT INTO charges (a) VALUES ($2 || '$1')", "could not determine data type of parameter $1"),
        (
            "INSERT INTO charges (a, n) VALUES ($1 || $2 || $3::int, $4)",
            "$4 is the fence, which cannot be of type INT4",
        ),
        ("INSERT INTO charges VALUES ($1 || $2 || $4, $3, $5)", "5 parameters"),
    ] {
        let error = PgSqlHandler::new(statement).unwrap().check(&database.store).await.unwrap_err();
        assert!(!error.is_retryable() && format!("{error:?}").contains(why), "{why}: {error:?}");
    }
    PgSqlHandler::new("DELETE FROM charges").unwrap().check(&database.store).await.unwrap();
    PgSqlHandler::new("INSERT INTO charges VALUES ($1)").unwrap().check(&database.store).await.unwrap();
    assert_eq!(database.sql("SELECT count(*) FROM charges"), "0", "a check executes nothing");
}

/// Operators that fit the questions better that a client asks of the catalogue, in a schema of the session's path.
const LOOK_ALIKES: &str = "CREATE SEQUENCE loot; \
    CREATE FUNCTION spring(integer, oid) RETURNS boolean LANGUAGE plpgsql AS \
      'BEGIN PERFORM pg_catalog.nextval(''looks.loot''); RETURN $1::oid OPERATOR(pg_catalog.=) $2; END'; \
    CREATE FUNCTION spring(oid, integer) RETURNS boolean LANGUAGE plpgsql AS \
      'BEGIN PERFORM pg_catalog.nextval(''looks.loot''); RETURN $1 OPERATOR(pg_catalog.=) $2::oid; END'; \
    CREATE OPERATOR = (leftarg = integer, rightarg = oid, function = spring); \
    CREATE OPERATOR = (leftarg = oid, rightarg = integer, function = spring); \
    CREATE DOMAIN doc AS jsonb; CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE t (a text, e doc, m mood DEFAULT 'ok'); \
    CREATE PROCEDURE note(x text) LANGUAGE sql AS 'INSERT INTO looks.t (a) VALUES (x)'";

#[tokio::test]
async fn nothing_but_the_statement_itself_is_looked_up_in_the_search_path() {
    let database = Database::with("looks", LOOK_ALIKES).await;
    for statement in [
        "INSERT INTO t (e) VALUES ($1) RETURNING *",
        "INSERT INTO t (a) VALUES ($2) RETURNING a, m",
        "SELECT m, e FROM t WHERE a = $1",
        "WITH x AS (INSERT INTO t (a) VALUES ($1) RETURNING a, m) SELECT * FROM x",
        "(SELECT a FROM t)",
        "CALL note($1)",
    ] {
        let handler = PgSqlHandler::new(statement).unwrap();
        handler.check(&database.store).await.unwrap();
        let payload = || Message::builder(&b"{}"[..]);
        database.run(&handler, payload()).await.unwrap();
        database.run(&handler, payload()).await.unwrap();
        assert_eq!(database.sql("SELECT is_called FROM loot"), "f", "{statement}");
    }
    let wrong = PgSqlHandler::new("INSERT INTO t (m) VALUES ($1)").unwrap();
    let error = wrong.check(&database.store).await.unwrap_err();
    assert!(error.to_string().contains("cannot be of type mood"), "{error}");
    assert_eq!(database.sql("SELECT is_called FROM loot"), "f");
}

#[tokio::test]
async fn a_cancelled_statement_returns_at_once_and_its_transaction_ends_with_its_time() {
    let limit = Duration::from_millis(500);
    let database = Database::connect("cancelled", "CREATE TABLE t (a text)", limit).await;
    let sleep = PgSqlHandler::new("INSERT INTO t SELECT $1 FROM pg_sleep(600)").unwrap();
    let (run, message) = claimed(Message::builder("x"));
    let mut conn = database.store.begin().await.unwrap();
    let cancelled = async {
        // Long enough for the statement to be running; cancelled earlier, it must end the same way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        run.cancel();
    };
    let both = async { tokio::join!(sleep.handle(message, database.store.lend(&mut conn)), cancelled) };
    let (handled, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("it returns");
    let error = handled.unwrap_err();
    assert!(error.verdict() == Verdict::Retry && error.text().contains("cancelled"), "{error}");
    let ended = tokio::time::timeout(Duration::from_secs(60), database.store.rollback(conn)).await;
    ended.expect("the server ends the statement by itself");

    // Its time is up without a cancellation, too.
    let error = database.run(&sleep, Message::builder("x")).await.unwrap_err();
    assert!(error.text().contains("statement timeout"), "{error}");
    assert_eq!(database.sql("SELECT count(*) FROM t"), "0");
}

#[tokio::test]
async fn a_run_cancelled_beforehand_executes_nothing() {
    let database = Database::with("beforehand", "CREATE TABLE t (a text CHECK (false))").await;
    let handler = PgSqlHandler::new("INSERT INTO t VALUES ($1)").unwrap();
    let (run, message) = claimed(Message::builder("x"));
    run.cancel();
    let mut conn = database.store.begin().await.unwrap();
    let error = handler.handle(message, database.store.lend(&mut conn)).await.unwrap_err();
    assert_eq!(error.text(), "cancelled before the statement was executed");
    database.store.rollback(conn).await;
}
