//! Unreadable rows of the outbox and of keys: written with SQL, past the rules of the schema.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use onceward::outbox::{OutboxStore, RowOutcome, TakeLimits};
use onceward::store::{ClaimRequest, ClaimTerms, Entropy};
use onceward::{Error, ErrorKind, Key, Scope, Store as _};
use onceward_sqlite::{SqliteConfig, SqliteOutbox, SqliteStore};
use sqlx::{Connection, Executor, SqliteConnection};

const LIMITS: TakeLimits = TakeLimits { rows: 100, per_key: 10, bytes: 1 << 20 };

/// Each is an assignment that makes a row unreadable.
const DAMAGE: [&str; 5] = [
    r#"headers = '[["a"]]'"#,
    "headers = '[[''a'',''b'']]'",
    r#"headers = '[["\ud800","b"]]'"#,
    "id = CAST(x'ff' AS TEXT)",
    "destination = CAST(x'ff' AS TEXT)",
];

struct Outbox {
    _directory: tempfile::TempDir,
    path: PathBuf,
    outbox: SqliteOutbox,
}

impl Outbox {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("onceward.db");
        let outbox = SqliteStore::open(SqliteConfig::new(&path)).await.unwrap().outbox();
        Self { _directory: directory, path, outbox }
    }

    async fn sql(&self, sql: &str) -> Result<(), sqlx::Error> {
        let url = format!("sqlite://{}", self.path.display());
        let mut conn = SqliteConnection::connect(&url).await.unwrap();
        conn.execute("PRAGMA busy_timeout = 10000").await.unwrap();
        conn.execute(sqlx::AssertSqlSafe(sql.to_owned())).await.map(drop)
    }

    /// A program that wrote the row before there were rules.
    async fn damage(&self, id: &str, assignment: &str) {
        for trigger in ["onceward_outbox_headers", "onceward_outbox_headers_changed"] {
            self.sql(&format!("DROP TRIGGER IF EXISTS {trigger}")).await.unwrap();
        }
        self.sql(&format!("UPDATE onceward_outbox SET {assignment} WHERE id = '{id}'")).await.unwrap();
    }

    async fn insert(&self, id: &str, order_key: Option<&str>) {
        let key = order_key.map_or("NULL".to_owned(), |key| format!("CAST('{key}' AS BLOB)"));
        self.sql(&format!(
            "INSERT INTO onceward_outbox (id, destination, order_key, payload) VALUES ('{id}', 'd', {key}, x'00')"
        ))
        .await
        .unwrap();
    }

    /// Takes and publishes until nothing is due; answers the ids in their order.
    async fn drain(&self) -> Vec<String> {
        let mut ids = Vec::new();
        while let Some((taken, rows)) = self.outbox.take(&LIMITS).await.unwrap() {
            ids.extend(rows.iter().map(|row| row.message.id.clone()));
            let outcomes = rows.iter().map(|row| (row.seq, RowOutcome::Published)).collect();
            self.outbox.settle(taken, outcomes).await.unwrap();
        }
        ids
    }
}

#[tokio::test]
async fn an_unreadable_row_counts_as_failed_and_fails_no_other() {
    for damage in DAMAGE {
        let outbox = Outbox::new().await;
        for id in ["a", "bad", "b"] {
            outbox.insert(id, None).await;
        }
        outbox.damage("bad", damage).await;
        let mut sent = outbox.drain().await;
        sent.sort();
        assert_eq!(sent, ["a", "b"], "{damage}");
        let status = outbox.outbox.status().await.unwrap();
        assert_eq!((status.waiting, status.failing), (1, 1), "{damage}");
        let worst = &status.worst[0];
        assert!(worst.attempts >= 1 && worst.error.contains("cannot be read"), "{worst:?}");

        outbox.sql("DELETE FROM onceward_outbox WHERE attempts > 0").await.unwrap();
        outbox.insert("c", None).await;
        assert_eq!(outbox.drain().await, ["c"]);
    }
}

#[tokio::test]
async fn what_stands_behind_an_unreadable_row_of_its_order_key_waits_for_it_and_other_keys_do_not() {
    let outbox = Outbox::new().await;
    for (id, key) in [("k1", "k"), ("bad", "k"), ("k3", "k"), ("o1", "other"), ("o2", "other")] {
        outbox.insert(id, Some(key)).await;
    }
    outbox.damage("bad", DAMAGE[0]).await;
    let mut sent = outbox.drain().await;
    sent.sort();
    assert_eq!(sent, ["k1", "o1", "o2"]);
    assert_eq!(outbox.drain().await, Vec::<String>::new(), "k3 waits");
    // It is corrected, and everything goes out in its order.
    outbox.sql("UPDATE onceward_outbox SET headers = '[]', next_at = 0 WHERE id = 'bad'").await.unwrap();
    let sent = tokio::time::timeout(Duration::from_secs(60), async {
        let mut sent = Vec::new();
        while sent.len() < 2 {
            sent.extend(outbox.drain().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sent
    });
    assert_eq!(sent.await.unwrap(), ["bad", "k3"]);
}

#[tokio::test]
async fn headers_that_no_relay_can_read_are_refused_when_a_row_is_written_and_when_it_is_changed() {
    let outbox = Outbox::new().await;
    outbox.insert("a", None).await;
    for headers in
        [r#"[["a"]]"#, "[[''a'',''b'']]", "{}", "nonsense", r#"[["a",{"hex":"0g"}]]"#, r#"[["a",1]]"#]
    {
        let insert = format!(
            "INSERT INTO onceward_outbox (destination, payload, headers) VALUES ('d', x'00', '{headers}')"
        );
        let change = format!("UPDATE onceward_outbox SET headers = '{headers}'");
        for sql in [insert, change] {
            let error = outbox.sql(&sql).await.unwrap_err().to_string();
            assert!(error.contains("headers is to be a JSON array"), "{sql}: {error}");
        }
    }
    outbox.sql(r#"UPDATE onceward_outbox SET headers = '[["a",{"hex":"00ff"}],["b","c"]]'"#).await.unwrap();
    let (_, rows) = outbox.outbox.take(&LIMITS).await.unwrap().unwrap();
    let expected =
        [("a".to_owned(), Bytes::from_static(b"\x00\xff")), ("b".to_owned(), Bytes::from_static(b"c"))];
    assert_eq!(rows[0].message.headers, expected);
}

#[tokio::test]
async fn numbers_that_no_record_has_are_damage_of_their_key_alone() {
    for damage in [
        "fence = 9223372036854775807",
        "fence = -1",
        "attempts = 4294967295",
        "lost = 4294967295",
        "generation = 4294967296",
        "state = 9",
        "lease_until = -1",
        "owner = x'00'",
        "reason = 99",
    ] {
        let outbox = Outbox::new().await;
        let store = SqliteStore::open(SqliteConfig::new(&outbox.path)).await.unwrap();
        let scope = Scope::parse("s").unwrap();
        let minute = Duration::from_secs(60);
        let terms = ClaimTerms { lease: minute, max_attempts: 3, ttl: 10 * minute };
        let mut entropy = Entropy::system();
        let requests = [1, 2, 3].map(|n| ClaimRequest {
            key: Key::from_bytes([n; 16]),
            owner: entropy.token(),
            fingerprint: None,
            generation: 0,
        });
        assert!(store.claim(&scope, &terms, &requests).await.iter().all(Result::is_ok));
        let key = "0202020202020202";
        outbox.sql(&format!("UPDATE onceward_keys SET {damage} WHERE key = x'{key}{key}'")).await.unwrap();
        let answers = store.claim(&scope, &terms, &requests).await;
        let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(Error::kind)).collect();
        assert_eq!(kinds, [None, Some(ErrorKind::Corrupt), None], "{damage}");
    }
}
