//! Checks of relays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::broker::{Broker, NOWHERE};
use super::{OutboxHarness, message};
use crate::outbox::{OutboxStatus, OutboxStore, Relay, RelayConfig, RelayCounts};
use crate::publisher::Outgoing;
use crate::retry::{Backoff, Jitter};

fn quick() -> RelayConfig {
    let backoff =
        Backoff { initial: Duration::from_millis(10), max: Duration::from_millis(100), jitter: Jitter::None };
    RelayConfig { backoff, poll: Duration::from_millis(20), batch: 16, per_key: 4, ..RelayConfig::default() }
}

/// A relay in a task of its own.
struct Running {
    counts: Arc<RelayCounts>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start<H: OutboxHarness>(harness: &H, broker: &Broker, config: RelayConfig) -> Self {
        let relay = Relay::new(harness.outbox().await, Arc::new(broker.clone()), config).expect("a relay");
        let (counts, stop) = (relay.counts(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { relay.run(stopped).await.expect("an outbox that answers") });
        Self { counts, stop, task }
    }

    async fn stop(self) -> Arc<RelayCounts> {
        self.stop.cancel();
        self.task.await.expect("a relay that ends");
        self.counts
    }
}

async fn until<H: OutboxHarness>(harness: &H, what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + harness.patience();
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a status of the outbox.
async fn until_status<H: OutboxHarness>(
    harness: &H,
    what: &str,
    mut is_so: impl FnMut(&OutboxStatus) -> bool,
) -> OutboxStatus {
    let (end, outbox) = (Instant::now() + harness.patience(), harness.outbox().await);
    loop {
        let status = outbox.status().await.expect("an answer");
        if is_so(&status) {
            return status;
        }
        assert!(Instant::now() < end, "not in time: {what}: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Three relays at once, and one confirm in ten lost: all arrives, each order key in its order, under ids that stay the same,
/// and nothing is sent again without a reason.
pub async fn three_relays_and_lost_confirms_lose_nothing_and_keep_each_keys_order<H: OutboxHarness>(
    harness: &H,
) {
    const KEYS: u32 = 30;
    const ROWS: u32 = 20;
    let broker = Broker::that_loses(10);
    let relays = [(); 3].map(|()| Running::start(harness, &broker, quick()));
    let relays = join_all(relays).await;
    let writers = (0..3).map(|writer| async move {
        for row in 0..ROWS {
            for key in (0..KEYS).filter(|key| key % 3 == writer) {
                harness.commit(&[message(&format!("key {key:02}"), row)]).await.expect("a commit");
            }
            harness.commit(&[message("", writer * 1_000 + row)]).await.expect("a commit");
        }
    });
    join_all(writers).await;
    let status = until_status(harness, "everything is published", |status| status.waiting == 0).await;
    let mut failed = 0;
    for relay in relays {
        failed += relay.stop().await.failed();
    }
    let mut arrivals = broker.first_arrivals();
    assert_eq!(arrivals.remove("").map(|lone| lone.len()), Some(3 * ROWS as usize));
    assert_eq!(arrivals.len(), KEYS as usize);
    for (key, numbers) in arrivals {
        assert_eq!(numbers, (0..ROWS).collect::<Vec<_>>(), "{key:?}");
    }
    assert!(failed > 0, "no confirm was lost");
    // A row whose confirm was lost was sent again, and no other was.
    assert_eq!(broker.sent().len() as u64, status.kept + failed);
}

/// A row that cannot be published holds back its own order key, is tried again, and goes out when it can; the others do not
/// wait for it, those that come later included.
pub async fn a_poison_row_holds_back_its_own_key_and_no_other<H: OutboxHarness>(harness: &H) {
    let poison = Outgoing { destination: NOWHERE.into(), ..message("poison", 0) };
    for row in [poison, message("poison", 1), message("sound", 0), message("", 7), message("poison", 2)] {
        harness.commit(&[row]).await.expect("a commit");
    }
    for number in 1..30 {
        harness.commit(&[message("sound", number)]).await.expect("a commit");
    }
    let broker = Broker::default();
    let look_every = Duration::from_millis(10);
    let relay = Running::start(harness, &broker, RelayConfig { look_every, ..quick() }).await;
    until(harness, "the others", || broker.sent().len() == 31).await;
    until_status(harness, "several tries", |status| status.worst.iter().any(|row| row.attempts >= 3)).await;
    // One that comes while nothing but the poison waits is not kept waiting by it.
    harness.commit(&[message("late", 0)]).await.expect("a commit");
    until(harness, "the late one", || broker.sent().len() == 32).await;
    // Sent rows are recorded a moment later.
    let status = until_status(harness, "its mark", |status| status.waiting == 3).await;
    let arrivals = broker.first_arrivals();
    assert_eq!(arrivals["sound"], (0..30).collect::<Vec<_>>());
    assert!(!arrivals.contains_key("poison"));
    assert_eq!((status.failing, status.held), (1, 2));
    assert_eq!(status.worst[0].destination, NOWHERE);
    assert!(status.worst[0].error.contains("no such queue"), "{status:?}");
    // The relay has seen it too.
    let seen = || relay.counts.seen();
    until(harness, "it is seen", || (seen().waiting, seen().failing, seen().held) == (3, 1, 2)).await;
    assert!(relay.counts.is_outbox_up());

    broker.repair();
    until(harness, "the rest", || broker.sent().len() == 35).await;
    assert_eq!(broker.first_arrivals()["poison"], [0, 1, 2]);
    let counts = relay.stop().await;
    assert_eq!(counts.published(), 35);
    assert!(counts.failed() >= 3);
}

/// A relay that sleeps is woken by a commit, and removes what it published once it is old enough.
pub async fn a_commit_wakes_the_relay_and_what_was_published_is_removed<H: OutboxHarness>(harness: &H) {
    let broker = Broker::default();
    let slow = RelayConfig { poll: Duration::from_secs(3_600), keep: Duration::ZERO, ..quick() };
    let relay = Running::start(harness, &broker, slow).await;
    for number in 0..20 {
        // Whether it sleeps or works at this moment.
        tokio::time::sleep(Duration::from_millis(u64::from(number % 4) * 30)).await;
        harness.commit(&[message("key", number)]).await.expect("a commit");
        until(harness, "it is sent", || broker.sent().len() == number as usize + 1).await;
    }
    until_status(harness, "the last mark", |status| (status.waiting, status.kept) == (0, 20)).await;
    relay.stop().await;
    let cleaning = RelayConfig { clean_every: Duration::from_millis(1), poll: quick().poll, ..slow };
    let relay = Running::start(harness, &broker, cleaning).await;
    until_status(harness, "published rows are gone", |status| status.kept == 0).await;
    assert_eq!(relay.stop().await.cleaned(), 20);
}
