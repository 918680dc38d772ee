//! Effects with keys beside positions, on a real broker: copies, policies, and keys that are claimed elsewhere, with an
//! in-memory database.

use std::sync::Arc;
use std::time::Duration;

use onceward::adapter::{Consumer, StoreAdmin};
use onceward::pipeline::config::{OnMismatch, OnMissingKey};
use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Entropy, KeyState};
use onceward::testing::{MemoryInbox, MemoryTransaction};
use onceward::{
    ErrorKind, Handled, HandlerError, Key, KeyExtractor, KeySource, MemoryStore, Message, Scope, Store,
    tx_handler,
};
use onceward_kafka_transactions::{EffectKeys, EffectsConfig, EffectsSummary, KafkaEffects};
use rdkafka::message::{Header, OwnedHeaders};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{LIMIT, Topic, take, text, until};

const ID: &str = "id";

/// A topic with records, one for dead letters, and a database.
struct Stage {
    input: Topic,
    letters: Topic,
    inbox: MemoryInbox,
}

struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<EffectsSummary, onceward::Error>>,
}

impl Running {
    async fn stop(self) -> EffectsSummary {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.task).await.unwrap().unwrap().unwrap()
    }
}

fn scope() -> Scope {
    Scope::parse("billing").unwrap()
}

fn extractor() -> KeyExtractor {
    KeyExtractor::new(&scope(), vec![KeySource::Header(ID.into())])
}

/// The effect is the payload; "broken" fails for good, and what begins with "slow" takes a while.
async fn note((): (), message: Message, tx: &mut MemoryTransaction) -> Handled {
    let text = String::from_utf8_lossy(message.payload());
    tx.effect(&*text);
    if text.starts_with("slow") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if text == "broken" { Err(HandlerError::permanent("broken")) } else { Ok(()) }
}

impl Stage {
    async fn new(partitions: i32) -> Self {
        let (input, letters) = (Topic::new(partitions).await, Topic::new(1).await);
        Self { input, letters, inbox: MemoryInbox::new(MemoryStore::new()) }
    }

    async fn send(&self, partition: i32, id: Option<&str>, payload: &str) {
        let mut headers = OwnedHeaders::new();
        if id.is_some() {
            headers = headers.insert(Header { key: ID, value: id });
        }
        self.input.send_with(partition, None, Some(payload), headers).await;
    }

    fn start(&self, change: impl FnOnce(&mut EffectKeys)) -> Running {
        let mut keys = EffectKeys::new(extractor());
        change(&mut keys);
        self.start_with(Some(keys))
    }

    fn start_without_keys(&self) -> Running {
        self.start_with(None)
    }

    fn start_with(&self, keys: Option<EffectKeys>) -> Running {
        let mut config = EffectsConfig::new(self.input.config());
        config.dead_letters = Some(self.letters.name.clone());
        config.keys = keys;
        let shutdown = CancellationToken::new();
        let store = Arc::new(self.inbox.clone());
        let handler = tx_handler(&*store, (), note);
        let run = KafkaEffects::new(config).unwrap().run(scope(), store, handler, shutdown.clone());
        Running { shutdown, task: tokio::spawn(run) }
    }

    /// The reasons of the dead letters, in order.
    async fn reasons(&self, count: usize) -> Vec<String> {
        let mut reader = self.letters.open().await;
        let letters = take(&mut reader, count).await;
        assert_eq!(reader.is_idle().await, Some(true), "there are more than {count}");
        let reason = |message: &Message| message.header("onceward-reason").cloned().unwrap_or_default();
        let reasons = letters
            .iter()
            .map(|one| format!("{}: {}", text(one), String::from_utf8_lossy(&reason(&one.message))));
        let reasons = reasons.collect();
        reader.close().await.unwrap();
        reasons
    }

    fn effects(&self) -> Vec<String> {
        let mut effects = self.inbox.effects();
        effects.sort();
        effects
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_one_transaction_later_and_on_other_partitions_have_one_effect() {
    let stage = Stage::new(2).await;
    for (partition, id) in [(0, "a"), (0, "a"), (0, "b"), (1, "a"), (1, "c"), (1, "b")] {
        stage.send(partition, Some(id), id).await;
    }
    let running = stage.start(|_| ());
    stage.input.wait_committed(&[3, 3]).await;
    stage.send(1, Some("b"), "b").await;
    stage.input.wait_committed(&[3, 4]).await;
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.copies, summary.known), (3, 4, 0));
    assert_eq!(stage.effects(), ["a", "b", "c"]);
    let key = extractor().key_of(&Message::builder("").header(ID, "a").build()).unwrap();
    let record = stage.inbox.inspect(&scope(), &key).await.unwrap().unwrap();
    assert_eq!(record.state, KeyState::Completed);
    assert!(record.expires_in > Duration::from_secs(7 * 24 * 3600 - 3600), "{record:?}");
    // Another run starts where this one has ended, and knows the keys.
    stage.send(0, Some("c"), "c").await;
    let running = stage.start(|_| ());
    stage.input.wait_committed(&[4, 4]).await;
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.copies, summary.known), (0, 1, 0));
    assert_eq!(stage.effects(), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_a_key_or_with_one_of_another_payload_follow_their_policies() {
    let stage = Stage::new(1).await;
    let records =
        [(Some("a"), "a"), (None, "none"), (Some("a"), "other"), (None, "none"), (Some("z"), "broken")];
    for (id, payload) in records {
        stage.send(0, id, payload).await;
    }
    let running = stage.start(|_| ());
    stage.input.wait_committed(&[5]).await;
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.dead_lettered), (1, 4));
    let expected = ["none: missing-key", "other: mismatch", "none: missing-key", "broken: permanent"];
    assert_eq!(stage.reasons(4).await, expected);

    for (id, payload) in records {
        stage.send(0, id, payload).await;
    }
    let running = stage.start(|keys| {
        keys.on_missing_key = OnMissingKey::Hash;
        keys.on_mismatch = OnMismatch::Ack;
    });
    stage.input.wait_committed(&[10]).await;
    let summary = running.stop().await;
    // A dead letter leaves no key: "broken" runs again.
    assert_eq!((summary.records, summary.copies, summary.dead_lettered), (1, 3, 1));
    assert_eq!(stage.effects(), ["a", "none"]);

    for (id, payload) in [(None, "none"), (Some("a"), "other")] {
        stage.send(0, id, payload).await;
    }
    let running = stage.start(|keys| {
        keys.on_missing_key = OnMissingKey::Reject;
        keys.on_mismatch = OnMismatch::Process;
    });
    stage.input.wait_committed(&[12]).await;
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.copies, summary.rejected), (0, 1, 1));

    stage.send(0, None, "none").await;
    let running = stage.start(|keys| keys.on_missing_key = OnMissingKey::Process);
    stage.input.wait_committed(&[13]).await;
    assert_eq!(running.stop().await.records, 1);
    assert_eq!(stage.effects(), ["a", "none", "none"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_fail_become_letters_and_those_around_them_have_their_effects_in_order() {
    let stage = Stage::new(1).await;
    let fails = [10, 11, 30, 59];
    let payload = |number| if fails.contains(&number) { "broken".to_owned() } else { number.to_string() };
    for number in 0..60 {
        stage.send(0, None, &payload(number)).await;
    }
    let running = stage.start_without_keys();
    stage.input.wait_committed(&[60]).await;
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.dead_lettered, summary.known), (56, 4, 0));
    let expected: Vec<_> = (0..60).map(payload).filter(|payload| payload != "broken").collect();
    assert_eq!(stage.inbox.effects(), expected);
    assert_eq!(stage.reasons(4).await, ["broken: permanent"; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_with_slow_handlers_ends_early_and_so_does_a_shutdown() {
    let stage = Stage::new(1).await;
    let expected: Vec<_> = (0..80).map(|number| format!("slow {number}")).collect();
    for payload in &expected {
        stage.send(0, None, payload).await;
    }
    let running = stage.start_without_keys();
    until("a transaction is committed", || !stage.inbox.effects().is_empty()).await;
    let summary = running.stop().await;
    let effects = stage.inbox.effects();
    assert!(effects.len() < expected.len(), "all were committed before the shutdown");
    assert_eq!((summary.records, &effects[..]), (effects.len() as u64, &expected[..effects.len()]));
    let running = stage.start_without_keys();
    stage.input.wait_committed(&[80]).await;
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.known), ((expected.len() - effects.len()) as u64, 0));
    assert_eq!(stage.inbox.effects(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_another_has_claimed_is_waited_for_and_other_partitions_go_on() {
    let stage = Stage::new(2).await;
    let key: Key = extractor().key_of(&Message::builder("").header(ID, "a").build()).unwrap();
    let ttl = Duration::from_secs(3_600);
    let terms = ClaimTerms { lease: Duration::from_secs(600), max_attempts: 5, ttl };
    let request = ClaimRequest { key, owner: Entropy::system().token(), fingerprint: None, generation: 0 };
    let Ok(Claim::Claimed(claimed)) = stage.inbox.claim(&scope(), &terms, &[request]).await.remove(0) else {
        panic!("not claimed")
    };
    for (partition, id) in [(0, "a"), (0, "b"), (1, "c"), (1, "d")] {
        stage.send(partition, Some(id), id).await;
    }
    let running = stage.start(|_| ());
    until("the other partition's effects", || stage.effects() == ["c", "d"]).await;
    let done = CompleteRequest::new(claimed.lease, ttl);
    assert!(stage.inbox.complete(&scope(), &[done]).await[0].is_ok());
    stage.input.wait_committed(&[2, 2]).await;
    let summary = running.stop().await;
    assert_eq!((summary.records, summary.copies), (3, 1));
    assert_eq!(stage.effects(), ["b", "c", "d"]);
}

/// The group's offset lies behind the end of the log, and the database knows records of it. To read all of it again, under
/// another name, would repeat their effects.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_shorter_than_what_was_processed_is_refused_and_repeats_no_effect() {
    let stage = Stage::new(1).await;
    for id in ["a", "b", "c"] {
        stage.send(0, Some(id), id).await;
    }
    let running = stage.start_without_keys();
    stage.input.wait_committed(&[3]).await;
    assert_eq!(running.stop().await.records, 3);
    stage.input.commit(0, 1000).await;
    let running = stage.start_without_keys();
    let ended = tokio::time::timeout(LIMIT, running.task).await.expect("it ends").unwrap();
    assert_eq!(ended.map_err(|error| error.kind()), Err(ErrorKind::Corrupt));
    assert_eq!(stage.effects(), ["a", "b", "c"]);
}

#[tokio::test]
async fn keys_that_cannot_be_kept_are_refused() {
    let refused = |keys: EffectKeys| {
        let mut config = EffectsConfig::new(onceward_kafka::KafkaConfig::new(["127.0.0.1:1"], ["t"], "g"));
        config.keys = Some(keys);
        KafkaEffects::new(config).unwrap_err()
    };
    let mut short = EffectKeys::new(extractor());
    short.ttl = Duration::from_micros(999);
    let none = EffectKeys::new(KeyExtractor::new(&scope(), Vec::new()));
    for (keys, what) in [(short, "ttl"), (none, "source")] {
        let error = refused(keys);
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains(what), "{error}");
    }
    let mut config = EffectsConfig::new(onceward_kafka::KafkaConfig::new(["127.0.0.1:1"], ["t"], "g"));
    config.keys = Some(EffectKeys::new(extractor()));
    let store = Arc::new(MemoryInbox::new(MemoryStore::new()));
    let handler = tx_handler(&*store, (), note);
    let other = Scope::parse("other").unwrap();
    let error = KafkaEffects::new(config)
        .unwrap()
        .run(other, store, handler, CancellationToken::new())
        .await
        .unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("scope"), "{error}");
}
