//! Rows of the outbox that no relay can publish: each fails alone, is named, and holds back its own order key only.

use std::sync::Arc;

use onceward::outbox::{OutboxStore, Relay, RelayConfig};
use onceward::testing::MemoryPublisher;
use onceward_test_servers::postgres::Postgres;

use crate::store::store_at;

/// Values for `header_names` and `header_values` that cannot be published.
const UNREADABLE: [(&str, &str); 5] = [
    ("ARRAY[NULL]::text[]", "ARRAY['x']::bytea[]"),
    ("ARRAY['a', NULL]", "ARRAY['x', 'y']::bytea[]"),
    ("ARRAY['a']", "ARRAY[NULL]::bytea[]"),
    ("ARRAY[['a', 'b'], ['c', 'd']]", "ARRAY['1', '2', '3', '4']::bytea[]"),
    ("ARRAY['a', 'b']", "ARRAY[['1'], ['2']]::bytea[]"),
];

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_rows_fail_alone_and_hold_back_their_order_key_only() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    // As rows of an earlier version, or of a table without its checks.
    server.sql("ALTER TABLE onceward.outbox DISABLE TRIGGER outbox_headers");
    server.sql("ALTER TABLE onceward.outbox DROP CONSTRAINT outbox_check");
    let put = |payload: &str, key: &str, names: &str, values: &str| {
        server.sql(&format!(
            "INSERT INTO onceward.outbox (destination, payload, order_key, header_names, header_values) \
             VALUES ('there', '{payload}', {key}, {names}, {values})"
        ));
    };
    let (names, values) = ("ARRAY['a']", "ARRAY['x']::bytea[]");
    for (n, (bad_names, bad_values)) in UNREADABLE.into_iter().enumerate() {
        put(&format!("good {n}"), "NULL", names, values);
        put("bad", "NULL", bad_names, bad_values);
        put(&format!("before {n}"), &format!("'key {n}'"), names, values);
        put("bad", &format!("'key {n}'"), bad_names, bad_values);
        put("behind", &format!("'key {n}'"), names, values);
    }
    put("bad", "NULL", "ARRAY['a', 'b']", values);
    // A list is a list, wherever its counting begins.
    put("shifted", "NULL", "'[0:0]={a}'::text[]", "'[5:5]={x}'::bytea[]");
    put("last", "'key of its own'", names, values);

    let (publisher, outbox) = (Arc::new(MemoryPublisher::new()), store.outbox());
    let config = RelayConfig { batch: 7, ..RelayConfig::default() };
    let relay = Relay::new(outbox.clone(), publisher.clone(), config).unwrap();
    relay.run_until_idle().await.unwrap();
    let mut sent: Vec<_> =
        publisher.sent().iter().map(|sent| String::from_utf8(sent.payload.to_vec()).unwrap()).collect();
    sent.sort();
    let mut expected: Vec<_> =
        (0..UNREADABLE.len()).flat_map(|n| [format!("good {n}"), format!("before {n}")]).collect();
    expected.extend(["last".to_owned(), "shifted".to_owned()]);
    expected.sort();
    assert_eq!(sent, expected);
    let status = outbox.status().await.unwrap();
    let bad = 2 * UNREADABLE.len() as u64 + 1;
    assert_eq!((status.failing, status.held), (bad, UNREADABLE.len() as u64), "{status:?}");
    assert!(
        status.worst.iter().all(|row| row.attempts == 1 && row.error.starts_with("unreadable: its header_"))
    );

    // Corrected by hand, all goes out.
    server.sql(
        "UPDATE onceward.outbox SET header_names = '{}', header_values = '{}', next_at = 0 WHERE published_at IS NULL",
    );
    relay.run_until_idle().await.unwrap();
    let status = outbox.status().await.unwrap();
    assert_eq!((status.waiting, status.failing), (0, 0), "{status:?}");
}

#[test]
fn what_no_relay_can_publish_is_refused_when_it_is_written() {
    let server = Postgres::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _store = runtime.block_on(store_at(&server.url("postgres")));
    let insert = |names: &str, values: &str| {
        format!(
            "INSERT INTO onceward.outbox (destination, payload, header_names, header_values) VALUES ('there', '', {names}, {values})"
        )
    };
    for (names, values) in UNREADABLE {
        let sql = insert(names, values);
        server.sql(&format!(
            "DO $do$ BEGIN {sql}; RAISE EXCEPTION 'taken: %', $sql${sql}$sql$; \
             EXCEPTION WHEN check_violation THEN NULL; END $do$"
        ));
    }
    server.sql(&insert("ARRAY['a']", "ARRAY['x']::bytea[]"));
    server.sql(&insert("'{}'", "'{}'"));
    server.sql("UPDATE onceward.outbox SET attempts = 1");
    assert_eq!(server.sql("SELECT count(*) FROM onceward.outbox"), "2");
}
