//! The outbox on a real server, under a role with no more than the documented rights: what commits goes out, in order, and
//! what does not commit never was.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use onceward::outbox::{OutboxStore, Relay, RelayConfig, RowOutcome, TakeLimits};
use onceward::retry::{Backoff, Jitter};
use onceward::{Error, ErrorKind, Outgoing, Publisher};
use onceward_postgres::{PgConfig, PgOutbox, PgStore};
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::process::wait_until;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A schema of its own on the shared server, and a role of its own.
struct Place {
    schema: String,
    server: &'static Postgres,
}

impl Place {
    async fn new() -> Self {
        let server = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
        let schema = format!("outbox_{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let config = PgConfig::from_url(&server.url("postgres")).unwrap().schema(&schema);
        PgStore::migrate(&config).await.unwrap();
        let grants = PgStore::grants(&config, &schema).unwrap();
        let mut owner = PgConnection::connect(&server.url("postgres")).await.unwrap();
        let sql = format!("CREATE ROLE {schema} LOGIN; {grants}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut owner).await.unwrap();
        Self { schema, server }
    }

    async fn outbox(&self) -> PgOutbox {
        let config = PgConfig::from_url(&self.server.url(&self.schema)).unwrap().schema(&self.schema);
        PgStore::connect(config.migrate_on_open(false)).await.unwrap().outbox()
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.server.url(&self.schema)).await.unwrap()
    }

    /// Commits messages, one transaction each.
    async fn commit(&self, outbox: &PgOutbox, messages: impl IntoIterator<Item = Outgoing>) {
        let mut conn = self.connect().await;
        for message in messages {
            let mut open = conn.begin().await.unwrap();
            outbox.put(&mut open, &[message]).await.unwrap();
            open.commit().await.unwrap();
        }
    }

    fn number(&self, what: &str) -> i64 {
        self.server.sql(&format!("SELECT {what} FROM {}.outbox", self.schema)).parse().unwrap()
    }
}

fn message(key: &str, number: u32) -> Outgoing {
    Outgoing {
        destination: "there".into(),
        order_key: Some(key.to_owned().into()).filter(|key: &Bytes| !key.is_empty()),
        payload: number.to_string().into(),
        ..Outgoing::default()
    }
}

/// Keeps what reaches it. Refuses what goes to "nowhere", and of so many messages in a hundred the confirm is lost.
#[derive(Clone, Default)]
struct Broker {
    sent: Arc<Mutex<Vec<Outgoing>>>,
    lost_in_a_hundred: u32,
    repaired: Arc<std::sync::atomic::AtomicBool>,
}

impl Broker {
    fn sent(&self) -> Vec<Outgoing> {
        self.sent.lock().unwrap().clone()
    }

    /// The numbers that arrived for each key, without the copies.
    fn first_arrivals(&self) -> BTreeMap<Bytes, Vec<u32>> {
        let (mut seen, mut arrivals) = (HashSet::new(), BTreeMap::<Bytes, Vec<u32>>::new());
        for message in self.sent() {
            if seen.insert(message.id.clone()) {
                let number = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
                arrivals.entry(message.order_key.unwrap_or_default()).or_default().push(number);
            }
        }
        arrivals
    }
}

#[async_trait]
impl Publisher for Broker {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        let mut outcomes = Vec::new();
        for message in batch {
            // Others have their turn in the middle of a batch.
            tokio::task::yield_now().await;
            if message.destination == "nowhere" && !self.repaired.load(Ordering::SeqCst) {
                outcomes.push(Err(Error::new(ErrorKind::Unavailable, "publish", "there is no such queue")));
                continue;
            }
            self.sent.lock().unwrap().push(message.clone());
            outcomes.push(if fastrand::u32(..100) < self.lost_in_a_hundred {
                Err(Error::new(ErrorKind::Timeout, "publish", "no confirm"))
            } else {
                Ok(())
            });
        }
        outcomes
    }
}

fn quick() -> RelayConfig {
    let backoff =
        Backoff { initial: Duration::from_millis(10), max: Duration::from_millis(100), jitter: Jitter::None };
    RelayConfig { backoff, poll: Duration::from_millis(20), batch: 16, per_key: 4, ..RelayConfig::default() }
}

/// A relay in a task of its own, until the token fires.
fn relay(
    outbox: PgOutbox,
    broker: &Broker,
    config: RelayConfig,
    stop: &CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let relay = Relay::new(outbox, Arc::new(broker.clone()), config).unwrap();
    let stop = stop.clone();
    tokio::spawn(async move { relay.run(stop).await.unwrap() })
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_commits_goes_out_whole_and_what_does_not_never_was() {
    let place = Place::new().await;
    let outbox = place.outbox().await;
    let mut conn = place.connect().await;
    let whole = Outgoing {
        id: "invoice-1".into(),
        headers: vec![("tenant".into(), "a".into()), ("raw".into(), Bytes::from_static(b"\xff\0"))],
        payload: Bytes::from_static(b"\0\xfe"),
        ..message("customer", 0)
    };
    let mut open = conn.begin().await.unwrap();
    outbox.put(&mut open, &[message("customer", 9)]).await.unwrap();
    open.rollback().await.unwrap();
    let mut open = conn.begin().await.unwrap();
    outbox.put(&mut open, &[whole.clone(), message("", 1)]).await.unwrap();
    open.commit().await.unwrap();

    let broker = Broker::default();
    Relay::new(outbox.clone(), Arc::new(broker.clone()), quick()).unwrap().run_until_idle().await.unwrap();
    let mut sent = broker.sent();
    sent.sort_by_key(|message| message.order_key.is_none());
    assert_eq!((sent.len(), &sent[0]), (2, &whole));
    assert_eq!(sent[1], Outgoing { id: sent[1].id.clone(), ..message("", 1) });
    assert_eq!(sent[1].id.len(), 36, "a random id");
    let status = outbox.status().await.unwrap();
    assert_eq!((status.waiting, status.kept, status.oldest), (0, 2, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_stored_is_refused_with_words() {
    let place = Place::new().await;
    let outbox = place.outbox().await;
    let mut conn = place.connect().await;
    for (wrong, word) in [
        (Outgoing { destination: String::new(), ..message("", 1) }, "no destination"),
        (Outgoing { order_key: Some(vec![b'x'; 1_025].into()), ..message("", 1) }, "1025 bytes"),
        (Outgoing { id: "a\0".into(), ..message("", 1) }, "NUL"),
    ] {
        let error = outbox.put(&mut conn, &[wrong]).await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_relays_and_lost_confirms_lose_nothing_and_keep_the_order_of_each_key() {
    const KEYS: u32 = 30;
    const ROWS: u32 = 30;
    let place = Arc::new(Place::new().await);
    let broker = Broker { lost_in_a_hundred: 10, ..Broker::default() };
    let stop = CancellationToken::new();
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(relay(place.outbox().await, &broker, quick(), &stop));
    }
    let mut writers = Vec::new();
    for writer in 0..3 {
        let place = Arc::clone(&place);
        writers.push(tokio::spawn(async move {
            let outbox = place.outbox().await;
            for row in 0..ROWS {
                let keys = (0..KEYS).filter(|key| key % 3 == writer);
                place.commit(&outbox, keys.map(|key| message(&format!("key {key:02}"), row))).await;
                place.commit(&outbox, [message("", writer * 1_000 + row)]).await;
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    until("everything is published", || place.number("count(*) FILTER (WHERE published_at IS NULL)") == 0)
        .await;
    stop.cancel();
    for task in tasks {
        task.await.unwrap();
    }
    let mut arrivals = broker.first_arrivals();
    assert_eq!(arrivals.remove(&Bytes::new()).unwrap().len(), 3 * ROWS as usize);
    assert_eq!(arrivals.len(), KEYS as usize);
    for (key, numbers) in arrivals {
        assert_eq!(numbers, (0..ROWS).collect::<Vec<_>>(), "{key:?}");
    }
    // A row whose confirm was lost was sent again under the same id, and no other was.
    let failures: i64 = place.number("sum(attempts)");
    let total = broker.sent().len();
    assert!(failures > 0, "no confirm was lost");
    assert_eq!(total as i64, place.number("count(*)") + failures);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_row_holds_back_its_own_key_and_no_other() {
    let place = Place::new().await;
    let outbox = place.outbox().await;
    let poison = |number| Outgoing { destination: "nowhere".into(), ..message("poison", number) };
    let rows = [poison(0), message("poison", 1), message("sound", 0), message("", 7), message("poison", 2)];
    place.commit(&outbox, rows).await;
    place.commit(&outbox, (1..30).map(|number| message("sound", number))).await;
    let broker = Broker::default();
    let stop = CancellationToken::new();
    let task = relay(outbox.clone(), &broker, quick(), &stop);
    until("the others", || broker.sent().len() == 31).await;
    until("several tries", || place.number("max(attempts)") >= 3).await;
    // One that comes while nothing but the poison waits is not kept waiting by it.
    place.commit(&outbox, [message("late", 0)]).await;
    until("the late one", || broker.sent().len() == 32).await;
    // What was sent is noted a moment later.
    until("its mark", || place.number("count(*) FILTER (WHERE published_at IS NULL)") == 3).await;
    let arrivals = broker.first_arrivals();
    assert_eq!(arrivals[&Bytes::from("sound")], (0..30).collect::<Vec<_>>());
    assert!(!arrivals.contains_key(&Bytes::from("poison")));
    let status = outbox.status().await.unwrap();
    assert_eq!((status.waiting, status.failing), (3, 1));
    assert!(status.oldest.is_some());
    assert_eq!(status.worst[0].destination, "nowhere");
    assert!(status.worst[0].error.contains("no such queue"), "{:?}", status.worst);

    broker.repaired.store(true, Ordering::SeqCst);
    until("the rest", || broker.sent().len() == 35).await;
    assert_eq!(broker.first_arrivals()[&Bytes::from("poison")], [0, 1, 2]);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_commits_later_does_not_come_before_what_has_been_sent() {
    let place = Place::new().await;
    let outbox = place.outbox().await;
    let broker = Broker::default();
    let relay = Relay::new(outbox.clone(), Arc::new(broker.clone()), quick()).unwrap();
    let mut conn = place.connect().await;
    let mut first = conn.begin().await.unwrap();
    outbox.put(&mut first, &[message("account", 1)]).await.unwrap();
    let second = tokio::spawn({
        let (place, outbox) = (Place { schema: place.schema.clone(), server: place.server }, outbox.clone());
        async move { place.commit(&outbox, [message("account", 2)]).await }
    });
    // It waits for the first one's end, or is done without having waited.
    let waits = format!(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
         WHERE l.locktype = 'advisory' AND NOT l.granted AND a.usename = '{}'",
        place.schema
    );
    until("the second one", || second.is_finished() || place.server.sql(&waits) == "1").await;
    relay.run_until_idle().await.unwrap();
    first.commit().await.unwrap();
    second.await.unwrap();
    relay.run_until_idle().await.unwrap();
    assert_eq!(broker.first_arrivals()[&Bytes::from("account")], [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_has_taken_nobody_else_gets_until_it_lets_go() {
    let place = Place::new().await;
    let (one, other) = (place.outbox().await, place.outbox().await);
    place
        .commit(&one, [message("a", 0), message("a", 1), message("a", 2), message("b", 0), message("", 0)])
        .await;
    let two_of_each = TakeLimits { rows: 100, per_key: 2, bytes: 1_000 };
    let (taken, rows) = one.take(&two_of_each).await.unwrap().unwrap();
    let mut seen: Vec<_> =
        rows.iter().map(|row| (row.message.order_key.clone(), row.message.payload.clone())).collect();
    seen.sort();
    let key = |key: &str| Some(Bytes::from(key.to_owned()));
    assert_eq!(
        seen,
        [(None, "0".into()), (key("a"), "0".into()), (key("a"), "1".into()), (key("b"), "0".into())]
    );
    // Not even the third of "a", which nobody has.
    assert!(other.take(&two_of_each).await.unwrap().is_none());
    drop(taken);
    let again = wait_for_take(&other, &two_of_each).await;
    assert_eq!(again.1, rows);
    let outcomes = again.1.iter().map(|row| (row.seq, RowOutcome::Published)).collect();
    other.settle(again.0, outcomes).await.unwrap();
    let (taken, rest) = one.take(&two_of_each).await.unwrap().unwrap();
    assert_eq!(rest.len(), 1);
    // Most of it is larger than allowed: the first comes alone.
    drop(taken);
    place.commit(&one, [message("c", 12_345), message("c", 6)]).await;
    let tight = TakeLimits { bytes: 1, ..two_of_each };
    let (_taken, alone) = wait_for_take(&one, &tight).await;
    assert_eq!(alone.len(), 1);
}

/// The server notices that a connection is closed a moment later.
async fn wait_for_take(
    outbox: &PgOutbox,
    limits: &TakeLimits,
) -> (<PgOutbox as OutboxStore>::Taken, Vec<onceward::outbox::OutboxRow>) {
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < end, "nothing was given back");
        if let Some(taken) = outbox.take(limits).await.unwrap() {
            return taken;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_gets_its_turn_however_many_rows_the_others_have() {
    let place = Place::new().await;
    let outbox = place.outbox().await;
    for key in ["a", "b", "c", "d", "e"] {
        place.commit(&outbox, (0..20).map(|number| message(key, number))).await;
    }
    let limits = TakeLimits { rows: 2, per_key: 1, bytes: 1_000 };
    let mut turns = HashMap::<Bytes, u32>::new();
    for _ in 0..10 {
        let (taken, rows) = outbox.take(&limits).await.unwrap().unwrap();
        for row in &rows {
            *turns.entry(row.message.order_key.clone().unwrap()).or_default() += 1;
        }
        outbox
            .settle(taken, rows.iter().map(|row| (row.seq, RowOutcome::Published)).collect())
            .await
            .unwrap();
    }
    assert_eq!(turns.len(), 5, "{turns:?}");
    assert!(turns.values().all(|turns| (3..=5).contains(turns)), "{turns:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_wakes_the_relay_and_what_was_published_is_removed_in_time() {
    let place = Place::new().await;
    let outbox = place.outbox().await;
    let broker = Broker::default();
    let stop = CancellationToken::new();
    let slow = RelayConfig { poll: Duration::from_secs(3_600), keep: Duration::ZERO, ..quick() };
    let task = relay(outbox.clone(), &broker, slow, &stop);
    for number in 0..20 {
        // Whether it sleeps or works at this moment.
        tokio::time::sleep(Duration::from_millis(u64::from(number % 4) * 30)).await;
        place.commit(&outbox, [message("key", number)]).await;
        until("it is sent", || broker.sent().len() == number as usize + 1).await;
    }
    assert_eq!(place.number("count(*)"), 20);
    stop.cancel();
    task.await.unwrap();
    assert_eq!(outbox.clean(Duration::from_secs(3_600), 100).await.unwrap(), 0);
    assert_eq!(outbox.clean(Duration::ZERO, 15).await.unwrap(), 15);
    let cleaning = RelayConfig { clean_every: Duration::from_millis(1), ..slow };
    let stop = CancellationToken::new();
    let relay = relay(outbox, &broker, RelayConfig { poll: Duration::from_millis(10), ..cleaning }, &stop);
    let gone = tokio::task::spawn_blocking({
        let place = Place { schema: place.schema.clone(), server: place.server };
        move || wait_until(PATIENCE, || place.number("count(*)") == 0)
    });
    assert!(gone.await.unwrap(), "published rows are still there");
    stop.cancel();
    relay.await.unwrap();
}
