//! Tests of the database as a file: opened, shared, refused, locked by others, and damaged.

use std::path::PathBuf;
use std::time::Duration;

use onceward::adapter::{Expiring, StoreAdmin};
use onceward::store::{AdviceLevel, Claim, Commit, Completion, Lease, TransactionalStore};
use onceward::{ErrorKind, Store};
use onceward_sqlite::{SqliteConfig, SqliteStore};
use sqlx::{Connection, Executor, Row, SqliteConnection};

use crate::support::{TERMS, claim, completion, key, request, scope};

struct File {
    directory: tempfile::TempDir,
}

impl File {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("onceward.db")
    }

    async fn store(&self) -> SqliteStore {
        SqliteStore::open(SqliteConfig::new(self.path())).await.unwrap()
    }

    /// A connection of the application's own.
    async fn connect(&self) -> SqliteConnection {
        SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", self.path().display())).await.unwrap()
    }
}

async fn complete(store: &SqliteStore, lease: Lease) -> Completion {
    store.complete(&scope(), &[completion(lease)]).await.remove(0).unwrap()
}

async fn effects(file: &File) -> i64 {
    let row = sqlx::query("SELECT count(*) FROM effects").fetch_one(&mut file.connect().await).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn what_was_completed_is_there_after_reopening() {
    let file = File::new();
    let store = file.store().await;
    let lease = claim(&store, 1).await;
    assert_eq!(complete(&store, lease).await, Completion::Completed);
    store.close().await;
    drop(store);
    let answer = file.store().await.claim(&scope(), &TERMS, &[request(1)]).await.remove(0).unwrap();
    assert!(matches!(answer, Claim::Completed { .. }), "{answer:?}");
}

#[tokio::test]
async fn a_closed_store_opens_again_when_it_is_used() {
    let file = File::new();
    let store = file.store().await;
    store.close().await;
    let _ = claim(&store, 1).await;
    assert!(store.inspect(&scope(), &key(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_good_file_has_nothing_to_complain_about() {
    let file = File::new();
    let advice = file.store().await.check().await.unwrap();
    assert!(advice.iter().all(|line| line.level == AdviceLevel::Ok), "{advice:?}");
    assert_eq!(advice.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_may_open_a_new_file_at_once() {
    let file = File::new();
    let mut openers = tokio::task::JoinSet::new();
    for n in 0..8 {
        let path = file.path();
        openers.spawn(async move {
            let store = SqliteStore::open(SqliteConfig::new(path)).await.unwrap();
            claim(&store, n).await
        });
    }
    assert_eq!(openers.join_all().await.len(), 8);
}

#[tokio::test]
async fn a_missing_directory_is_named_as_the_fault() {
    let file = File::new();
    let error = SqliteStore::open(SqliteConfig::new(file.directory.path().join("missing/onceward.db")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("its directory must exist"), "{error}");
}

#[tokio::test]
async fn new_files_are_their_owners_alone_and_old_ones_keep_their_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = File::new();
    let store = file.store().await;
    let _ = claim(&store, 1).await;
    for name in ["onceward.db", "onceward.db-wal", "onceward.db-shm"] {
        assert_eq!(mode(file.directory.path().join(name)), 0o600, "{name}");
    }
    store.close().await;
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o660)).unwrap();
    let store = file.store().await;
    let _ = claim(&store, 2).await;
    assert_eq!(mode(file.path()), 0o660);

    let migrated = SqliteConfig::new(file.directory.path().join("migrated.db"));
    SqliteStore::migrate(&migrated).await.unwrap();
    assert_eq!(mode(migrated.path.clone()), 0o600);
}

#[tokio::test]
async fn no_file_is_created_through_a_link() {
    let file = File::new();
    let elsewhere = file.directory.path().join("elsewhere.db");
    std::os::unix::fs::symlink(&elsewhere, file.path()).unwrap();
    let error = SqliteStore::open(SqliteConfig::new(file.path())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("symbolic link") && !elsewhere.exists(), "{error}");
    // To a file that is there it is followed: it belongs to the user of this test.
    SqliteStore::open(SqliteConfig::new(&elsewhere)).await.unwrap().close().await;
    let store = SqliteStore::open(SqliteConfig::new(file.path())).await.unwrap();
    let _ = claim(&store, 1).await;
    assert!(file.directory.path().join("elsewhere.db-wal").exists());
    // SQLite deletes the log with the last connection.
    drop(store);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let file = File::new();
    std::fs::write(file.path(), "orders, customers, and other things ".repeat(200)).unwrap();
    let error = SqliteStore::open(SqliteConfig::new(file.path())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(!error.is_retryable(), "a start does not wait for it");
}

#[tokio::test]
async fn paths_that_are_no_files_are_refused() {
    for path in ["", ":memory:", "file:x?mode=memory"] {
        assert_eq!(
            SqliteStore::open(SqliteConfig::new(path)).await.unwrap_err().kind(),
            ErrorKind::Config,
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_schema_that_is_missing_is_refused_unless_it_may_be_made() {
    let file = File::new();
    let mut config = SqliteConfig::new(file.path());
    config.migrate = false;
    let error = SqliteStore::open(config.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("run its migrations"), "{error}");
    let steps = onceward_migrations::latest(onceward_migrations::SQLITE);
    assert_eq!(SqliteStore::migrate(&config).await.unwrap(), steps);
    assert_eq!(SqliteStore::migrate(&config).await.unwrap(), 0, "there is nothing left to do");
    assert!(SqliteStore::open(config).await.is_ok());
}

#[tokio::test]
async fn a_file_of_a_newer_schema_format_or_key_encoding_is_refused() {
    for (change, word) in [
        ("INSERT INTO onceward_migrations VALUES (99, 'later', 0)", "newer onceward"),
        ("UPDATE onceward_meta SET value = 2 WHERE name = 'format'", "records have format 2"),
        ("UPDATE onceward_meta SET value = 2 WHERE name = 'key_format'", "keys have encoding 2"),
    ] {
        let file = File::new();
        file.store().await.close().await;
        file.connect().await.execute(change).await.unwrap();
        let error = SqliteStore::open(SqliteConfig::new(file.path())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn the_applications_own_tables_and_migrations_are_left_alone() {
    let file = File::new();
    let mut own = file.connect().await;
    own.execute("CREATE TABLE _sqlx_migrations (version INTEGER); CREATE TABLE keys (a)").await.unwrap();
    let store = file.store().await;
    let _ = claim(&store, 1).await;
    let rows = sqlx::query(
        "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'onceward%' AND name NOT LIKE 'sqlite%'",
    )
    .fetch_all(&mut own)
    .await
    .unwrap();
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(names, ["_sqlx_migrations", "keys"]);
}

#[tokio::test]
async fn a_file_that_another_process_holds_is_worth_another_try() {
    let file = File::new();
    let mut config = SqliteConfig::new(file.path());
    config.busy_timeout = Duration::from_millis(50);
    let store = SqliteStore::open(config).await.unwrap();
    let lease = claim(&store, 1).await;
    let mut other = file.connect().await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let answers = store.complete(&scope(), &[completion(lease), completion(lease)]).await;
    assert_eq!(answers.len(), 2, "a batch that fails as a whole has an error for each item");
    for answer in answers {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.is_retryable());
    }
    assert!(store.inspect(&scope(), &key(1)).await.unwrap().is_some(), "a look does not wait for the writer");
    assert_eq!(TransactionalStore::begin(&store).await.unwrap_err().kind(), ErrorKind::Unavailable);
    other.execute("COMMIT").await.unwrap();
    assert_eq!(complete(&store, lease).await, Completion::Completed);
}

#[tokio::test]
async fn a_damaged_row_fails_its_own_key_only() {
    let file = File::new();
    let store = file.store().await;
    for n in 1..=3 {
        let _ = claim(&store, n).await;
    }
    let damage =
        sqlx::query("UPDATE onceward_keys SET state = 77 WHERE key = ?").bind(key(2).as_bytes().to_vec());
    damage.execute(&mut file.connect().await).await.unwrap();
    let answers = store.claim(&scope(), &TERMS, &[request(1), request(2), request(3)]).await;
    assert!(matches!(answers[0], Ok(Claim::InProgress { .. })));
    let error = answers[1].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("state 77"), "{error}");
    assert!(matches!(answers[2], Ok(Claim::InProgress { .. })));
}

#[tokio::test]
async fn a_batch_that_cannot_be_written_does_not_fail_those_that_share_its_transaction() {
    let file = File::new();
    let store = file.store().await;
    let trigger = "CREATE TRIGGER picky BEFORE INSERT ON onceward_keys \
                   WHEN NEW.key = x'02020202020202020202020202020202' BEGIN SELECT raise(ABORT, 'no'); END";
    file.connect().await.execute(trigger).await.unwrap();
    // While the turn is taken, the three batches gather.
    let turn = TransactionalStore::begin(&store).await.unwrap();
    let gathered = async {
        let (billing, one, two, three) = (scope(), [request(1)], [request(2)], [request(3)]);
        let (first, second, third, ()) = tokio::join!(
            store.claim(&billing, &TERMS, &one),
            store.claim(&billing, &TERMS, &two),
            store.claim(&billing, &TERMS, &three),
            async {
                tokio::task::yield_now().await;
                store.rollback(turn).await;
            }
        );
        [first, second, third].map(|mut answers| answers.remove(0))
    };
    let answers = gathered.await;
    assert!(matches!(answers[0], Ok(Claim::Claimed(_))), "{:?}", answers[0]);
    assert!(answers[1].is_err());
    assert!(matches!(answers[2], Ok(Claim::Claimed(_))), "{:?}", answers[2]);
}

#[tokio::test]
async fn a_call_that_is_dropped_is_finished_all_the_same() {
    let file = File::new();
    let store = file.store().await;
    let (billing, batch) = (scope(), [request(1)]);
    let turn = TransactionalStore::begin(&store).await.unwrap();
    {
        let mut call = std::pin::pin!(store.claim(&billing, &TERMS, &batch));
        assert!(futures_poll_once(call.as_mut()).await, "the call waits for its turn");
    }
    store.rollback(turn).await;
    // The next batch comes after the dropped one.
    let _ = claim(&store, 2).await;
    let record = store.inspect(&billing, &key(1)).await.unwrap();
    assert!(record.is_some(), "the claim was written though nobody waited for it");
}

/// Polls once; true if it is pending.
async fn futures_poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

#[tokio::test]
async fn a_call_that_is_dropped_at_any_point_leaves_nothing_open() {
    let file = File::new();
    let store = file.store().await;
    let (billing, keys) = (scope(), [key(1)]);
    for polls in 0..20 {
        let mut call = std::pin::pin!(store.purge(10));
        let mut forget = std::pin::pin!(store.forget(&billing, &keys));
        for _ in 0..polls {
            if !futures_poll_once(call.as_mut()).await || !futures_poll_once(forget.as_mut()).await {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let lease = claim(&store, 1).await;
    assert_eq!(complete(&store, lease).await, Completion::Completed);
}

#[tokio::test]
async fn fences_ahead_of_the_clock_are_outgrown_after_a_forget_and_a_purge() {
    const AHEAD: i64 = i64::MAX / 4;
    let file = File::new();
    let store = file.store().await;
    for (n, change) in [(1, "fence = ?"), (2, "expires_at = 0, fence = ?")] {
        let _ = claim(&store, n).await;
        let sql = format!("UPDATE onceward_keys SET {change} WHERE key = ?");
        let ahead = AHEAD + i64::from(n);
        let set_back = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(ahead).bind(key(n).as_bytes().to_vec());
        set_back.execute(&mut file.connect().await).await.unwrap();
        if n == 1 {
            assert!(store.forget(&scope(), &[key(n)]).await.remove(0).unwrap());
        } else {
            assert_eq!(store.purge(10).await.unwrap(), 1);
        }
        assert!(
            claim(&store, n).await.fence > ahead.unsigned_abs(),
            "the clock was set back, the fence was not"
        );
    }
}

#[tokio::test]
async fn a_begin_that_is_dropped_leaves_nothing_open() {
    let file = File::new();
    let store = file.store().await;
    for polls in 0..20 {
        let mut begin = std::pin::pin!(TransactionalStore::begin(&store));
        for _ in 0..polls {
            if !futures_poll_once(begin.as_mut()).await {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let lease = claim(&store, 1).await;
    assert_eq!(complete(&store, lease).await, Completion::Completed);
}

#[test]
fn a_transaction_whose_runtime_is_gone_is_rolled_back() {
    let file = File::new();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let (store, conn) = first.block_on(async {
        let store = file.store().await;
        file.connect().await.execute("CREATE TABLE effects (a)").await.unwrap();
        let mut conn = TransactionalStore::begin(&store).await.unwrap();
        store.lend(&mut conn).execute("INSERT INTO effects VALUES (1)").await.unwrap();
        (store, conn)
    });
    drop(first);
    drop(conn);
    runtime().block_on(async {
        let lease = claim(&store, 1).await;
        assert_eq!(complete(&store, lease).await, Completion::Completed);
        assert_eq!(effects(&file).await, 0);
    });
}

#[test]
fn a_transaction_that_outlives_its_runtime_task_is_rolled_back() {
    let file = File::new();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let store = first.block_on(async {
        let store = file.store().await;
        file.connect().await.execute("CREATE TABLE effects (a)").await.unwrap();
        let mut conn = TransactionalStore::begin(&store).await.unwrap();
        store.lend(&mut conn).execute("INSERT INTO effects VALUES (1)").await.unwrap();
        // Its rollback is a task that this runtime will never run.
        drop(conn);
        store
    });
    drop(first);
    runtime().block_on(async {
        let lease = claim(&store, 1).await;
        assert_eq!(complete(&store, lease).await, Completion::Completed);
        assert_eq!(effects(&file).await, 0);
    });
}

#[tokio::test]
async fn a_nested_transaction_of_the_handler_is_a_savepoint() {
    let file = File::new();
    let store = file.store().await;
    file.connect().await.execute("CREATE TABLE effects (a)").await.unwrap();
    let lease = claim(&store, 1).await;
    let mut conn = TransactionalStore::begin(&store).await.unwrap();
    {
        let mut tx = store.lend(&mut conn);
        let mut kept = tx.begin().await.unwrap();
        kept.execute("INSERT INTO effects VALUES (1)").await.unwrap();
        kept.commit().await.unwrap();
        let mut dropped = tx.begin().await.unwrap();
        dropped.execute("INSERT INTO effects VALUES (2)").await.unwrap();
    }
    assert_eq!(store.commit(conn, &scope(), &completion(lease)).await.unwrap(), Commit::Committed);
    assert_eq!(effects(&file).await, 1);
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_itself_is_found_out() {
    for end in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN IMMEDIATE"] {
        let file = File::new();
        let store = file.store().await;
        let lease = claim(&store, 1).await;
        let mut conn = TransactionalStore::begin(&store).await.unwrap();
        store.lend(&mut conn).execute(sqlx::AssertSqlSafe(end)).await.unwrap();
        let error = store.commit(conn, &scope(), &completion(lease)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().contains("the handler ended the transaction itself"), "{error}");
        assert_eq!(complete(&store, lease).await, Completion::Completed, "{end}: the store goes on");
    }
}

#[tokio::test]
async fn other_writes_wait_for_a_transaction_and_looks_do_not() {
    let file = File::new();
    let store = file.store().await;
    let conn = TransactionalStore::begin(&store).await.unwrap();
    assert!(store.inspect(&scope(), &key(1)).await.unwrap().is_none());
    let (billing, batch) = (scope(), [request(1)]);
    let mut call = std::pin::pin!(store.claim(&billing, &TERMS, &batch));
    for _ in 0..100 {
        assert!(futures_poll_once(call.as_mut()).await);
        tokio::task::yield_now().await;
    }
    store.rollback(conn).await;
    assert!(matches!(call.await.remove(0), Ok(Claim::Claimed(_))));
}

#[tokio::test]
async fn a_vanished_file_is_not_replaced_by_an_empty_one() {
    let file = File::new();
    let store = file.store().await;
    store.close().await;
    std::fs::remove_file(file.path()).unwrap();
    let answers = store.claim(&scope(), &TERMS, &[request(1)]).await;
    assert_eq!(answers[0].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(!file.path().exists());
}
