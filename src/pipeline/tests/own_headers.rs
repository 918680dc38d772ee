//! Whose headers name key and generation: those of our own dead letters, as far as they are proven.

use super::*;
use crate::dead_letter::{HEADER_GENERATION, HEADER_KEY, HEADER_MAC, HEADER_REASON, HEADER_SCOPE};
use crate::message::Position;
use crate::own_headers::OwnSecrets;
use crate::pipeline::config::OnMismatch;
use crate::publisher::Outgoing;
use crate::store::{MAX_GENERATION, Redrive, RedriveRequest};
use crate::testing::{Fault, Operation};

async fn never(_: Message) -> Handled {
    Err(HandlerError::permanent("never"))
}

fn sealed(secret: &[u8; 16]) -> OwnHeaders {
    OwnHeaders::authenticated(OwnSecrets::new(secret).unwrap())
}

/// Ours, as anybody can write them.
fn forged(message: MessageBuilder, key: Key, generation: u32) -> MessageBuilder {
    message
        .header(HEADER_SCOPE, "billing")
        .header(HEADER_KEY, key.to_string())
        .header(HEADER_GENERATION, generation.to_string())
}

impl World {
    fn worker_that(&self, own: OwnHeaders) -> WorkerBuilder<'_> {
        self.worker().config(|config| config.own_headers = own)
    }

    /// The letter of `id`, which dies at a worker with these headers.
    async fn letter_of(&self, id: &str, own: OwnHeaders) -> Outgoing {
        self.publish(id);
        let worker = self.worker_that(own).start(never);
        self.empty().await;
        let _ = worker.end().await;
        self.letters.sent().pop().unwrap()
    }

    async fn move_back(&self, letter: &Outgoing) {
        self.broker.publish(MemoryPublisher::as_delivered(letter));
        self.empty().await;
    }
}

fn header(letter: &Outgoing, name: &str) -> String {
    let (_, value) =
        letter.headers.iter().find(|(own, _)| own == name).unwrap_or_else(|| panic!("no {name}"));
    String::from_utf8(value.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn headers_that_nothing_proves_choose_neither_key_nor_generation() {
    for own in [OwnHeaders::default(), sealed(b"0123456789abcdef")] {
        let world = World::new();
        let worker =
            world.worker_that(own).with(|worker| worker.keys = vec![KeySource::PayloadHash]).start_ok();
        for n in 0..4 {
            let key = Key::from_bytes([n; 16]);
            world.broker.publish(Message::builder("pay 7"));
            world.broker.publish(forged(Message::builder("pay 7"), key, u32::from(n)));
            world
                .broker
                .publish(forged(Message::builder("pay 7"), key, n.into()).header(HEADER_MAC, "1.0.0"));
            world
                .broker
                .publish(forged(Message::builder("pay 7"), key, 0).header(HEADER_REASON, "permanent"));
        }
        world.empty().await;
        let summary = worker.end().await;
        assert_eq!((summary.handled(), summary.duplicates()), (1, 15));
        assert_eq!(summary.counters().get(Counter::OwnHeadersIgnored), 12);
    }
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_nothing_proves_is_never_acked_as_a_copy_of_what_died() {
    let world = World::new();
    let letter = world.letter_of("a", OwnHeaders::default()).await;
    let worker = world.worker_that(OwnHeaders::default()).start_ok();
    world.move_back(&letter).await;
    world.move_back(&letter).await;
    let letters = world.letters.sent();
    assert_eq!(letters.len(), 3, "it is in the dead-letter queue again, each time");
    assert_ne!(letters[0].own_id, letters[1].own_id, "whoever deduplicates letters by id would lose it");
    assert_eq!(header(&letters[1], HEADER_KEY), world.key("a").to_string());
    assert_eq!(
        (header(&letters[1], HEADER_GENERATION), header(&letters[1], HEADER_REASON)),
        ("0".into(), "permanent".into())
    );
    assert!(header(&letters[1], "onceward-error").contains("nothing proves it"));
    // A plain copy is one.
    world.publish("a");
    world.empty().await;
    assert_eq!(worker.count(Counter::DuplicatesOfDead), 1);

    // The store's own call opens the key; then the message needs no headers.
    let request = RedriveRequest { key: world.key("a"), generation: 0, ttl: 3600 * SECOND };
    let opened = world.store.redrive(&world.scope, &[request]).await.pop().unwrap().unwrap();
    assert_eq!(opened, Redrive::Open { generation: 1 });
    world.move_back(&letters[1]).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (1, 2));
    assert_eq!(world.runs_of("a").last().unwrap().generation, 1);
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_follows_a_copy_that_dies_is_not_acked_with_it() {
    let world = World::new();
    let letter = world.letter_of("a", OwnHeaders::default()).await;
    let worker = world.worker_that(OwnHeaders::default());
    // Both are in hand while the store is unavailable.
    for _ in 0..20 {
        worker.store.next(crate::testing::Operation::Claim, crate::testing::Fault::Refused);
    }
    let worker = worker.start_ok();
    world.publish("a");
    world.broker.publish(MemoryPublisher::as_delivered(&letter));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), summary.counters().get(Counter::DuplicatesOfDead)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_sealed_letter_is_a_redrive_and_what_was_changed_in_it_is_not() {
    let world = World::new();
    let own = sealed(b"0123456789abcdef");
    let letter = world.letter_of("a", own.clone()).await;
    let worker = world.worker_that(own).start_ok();
    let change = |name: &str, value: &str| {
        let mut changed = letter.clone();
        let (_, own) = changed.headers.iter_mut().find(|(own, _)| own == name).unwrap();
        *own = value.to_owned().into();
        changed
    };
    let payload = Outgoing { payload: "b".into(), ..letter.clone() };
    let key = world.key("b").to_string();
    for changed in
        [change(HEADER_KEY, &key), change(HEADER_GENERATION, "1"), change(HEADER_MAC, "1.00.00"), payload]
    {
        world.move_back(&changed).await;
    }
    assert_eq!(world.runs_of("a").len(), 1, "none of them is a redrive");
    assert_eq!(world.runs_of("b").len(), 0);
    assert_eq!(world.letters.sent().len(), 5, "and none is lost");
    world.move_back(&letter).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), world.runs_of("a").last().unwrap().generation), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn letters_sealed_with_the_secret_before_are_redriven_while_it_is_kept() {
    let world = World::new();
    let letter = world.letter_of("a", sealed(b"0123456789abcdef")).await;
    let new = || OwnSecrets::new(b"fedcba9876543210").unwrap();
    let rotated = OwnHeaders::authenticated(new());
    let worker = world.worker_that(rotated).start_ok();
    world.move_back(&letter).await;
    assert_eq!(worker.end().await.dead_lettered(), 1);
    let both = OwnHeaders::authenticated(new().with_previous(b"0123456789abcdef").unwrap());
    let worker = world.worker_that(both).start_ok();
    world.move_back(&letter).await;
    assert_eq!(worker.end().await.handled(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_letter_of_a_generation_that_did_not_die_is_kept_and_comes_back_as_one_that_did() {
    let world = World::new();
    let _ = world.letter_of("a", OwnHeaders::trusted()).await;
    let worker = world.worker_that(OwnHeaders::trusted()).start_ok();
    for generation in [1, 5, MAX_GENERATION - 1, MAX_GENERATION, i32::MAX as u32, u32::MAX] {
        let letter = forged(message("a"), world.key("a"), generation).header(HEADER_REASON, "permanent");
        world.broker.publish(letter);
        world.empty().await;
        assert_eq!(world.runs_of("a").len(), 1, "{generation}");
        let letter = world.letters.sent().pop().unwrap();
        assert_eq!(header(&letter, HEADER_GENERATION), "0", "that of the key, so that it can be redriven");
    }
    assert_eq!(world.letters.sent().len(), 7);
    let letter = world.letters.sent().pop().unwrap();
    world.move_back(&letter).await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::DuplicatesOfDead)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_letter_of_a_generation_that_did_not_die_is_kept_when_its_publish_is_not_confirmed() {
    let world = World::new();
    let _ = world.letter_of("a", OwnHeaders::trusted()).await;
    let worker = world.worker_that(OwnHeaders::trusted()).start_ok();
    worker.letters.next(Operation::Publish, Fault::Refused);
    let letter = forged(message("a"), world.key("a"), 5).header(HEADER_REASON, "permanent");
    world.broker.publish(letter);
    world.empty().await;
    assert_eq!(world.letters.sent().len(), 2);
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), summary.counters().get(Counter::DuplicatesOfDead)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_letter_of_another_scope_is_a_message_like_any_other() {
    let world = World::new();
    let worker = world.worker_that(OwnHeaders::default()).start_ok();
    let letter = message("a").header(HEADER_SCOPE, "mail").header(HEADER_GENERATION, "3");
    world.broker.publish(letter.header(HEADER_KEY, world.key("b").to_string()));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.counters().get(Counter::OwnHeadersIgnored)), (1, 0));
    assert_eq!(world.state("a").await, KeyState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_mismatch_that_is_redriven_runs_once_under_a_key_of_its_own() {
    let world = World::new();
    let own = sealed(b"0123456789abcdef");
    world.publish("a");
    let worker = world.worker_that(own.clone()).start_ok();
    world.empty().await;
    world.broker.publish(Message::builder("another").header("id", "a"));
    world.empty().await;
    let letter = world.letters.sent().pop().unwrap();
    assert_eq!(header(&letter, HEADER_REASON), "mismatch");
    world.move_back(&letter).await;
    world.move_back(&letter).await;
    world.publish("a");
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.duplicates(), summary.dead_lettered()), (2, 2, 1));
    assert_eq!(world.runs().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_redriven_mismatch_that_dies_is_redriven_again_under_its_own_key() {
    let world = World::new();
    let own = sealed(b"0123456789abcdef");
    world.publish("a");
    let worker = world.worker_that(own).start(|message| async move {
        if message.payload() == "another" && message.generation() == 0 {
            never(message).await
        } else {
            Ok(())
        }
    });
    world.empty().await;
    world.broker.publish(Message::builder("another").header("id", "a"));
    world.empty().await;
    for reason in ["mismatch", "permanent"] {
        let letter = world.letters.sent().pop().unwrap();
        assert_eq!(header(&letter, HEADER_REASON), reason);
        world.move_back(&letter).await;
    }
    let summary = worker.end().await;
    assert_eq!((summary.handled(), summary.dead_lettered()), (2, 2));
    assert_eq!(world.runs().last().unwrap().generation, 1);
}

#[tokio::test(start_paused = true)]
async fn a_corrected_letter_that_nothing_proves_is_not_acked_as_a_mismatch() {
    let world = World::new();
    let mut letter = world.letter_of("a", OwnHeaders::default()).await;
    letter.payload = "corrected".into();
    let worker = world
        .worker_that(OwnHeaders::default())
        .config(|config| config.policies.on_mismatch = OnMismatch::Ack)
        .start_ok();
    world.move_back(&letter).await;
    world.broker.publish(Message::builder("another").header("id", "a"));
    world.empty().await;
    let summary = worker.end().await;
    assert_eq!((summary.dead_lettered(), summary.counters().get(Counter::MismatchAcked)), (1, 1));
}

/// A producer that knows everything but the secret, among honest ones, at each kind of key that it does not choose.
#[tokio::test(start_paused = true)]
async fn no_forged_header_repeats_or_suppresses_an_honest_effect() {
    const HONEST: u64 = 200;
    const NAMES: [&str; 10] = [
        HEADER_KEY,
        HEADER_GENERATION,
        HEADER_REASON,
        HEADER_MAC,
        "onceward-id",
        "onceward-message-id",
        "onceward-attempts",
        "onceward-origin",
        "onceward-position",
        "onceward-retry-position",
    ];
    const VALUES: [&str; 8] = ["0", "1", "999999", "1000000", "4294967295", "mismatch", "permanent", ""];
    for source in [KeySource::PayloadHash, KeySource::MessageId, KeySource::Position] {
        for own in [OwnHeaders::default(), sealed(b"0123456789abcdef")] {
            let (world, mut rng) = (World::new(), fastrand::Rng::with_seed(7));
            let keys = crate::extract::KeyExtractor::new(&world.scope, vec![source.clone()]);
            let honest = |n: u64| Message::builder(format!("honest {n}")).message_id(format!("honest {n}"));
            // The honest ones stand anywhere; the broker counts positions from 0.
            let mut roles: Vec<_> = (0..10 * HONEST).map(|n| (n < HONEST).then_some(n)).collect();
            rng.shuffle(&mut roles);
            for role in &roles {
                if let Some(n) = role {
                    world.broker.publish(honest(*n));
                    continue;
                }
                let (victim, number) = (rng.u64(..HONEST), rng.u64(..));
                // What it does not choose, a payload's hash or the broker's ids and positions, is its own.
                let payload = match source {
                    KeySource::PayloadHash => format!("honest {victim}"),
                    _ => format!("evil {number}"),
                };
                let offset = roles.iter().position(|role| *role == Some(victim)).unwrap() as u64;
                let position = Position { incarnation: "memory".into(), partition: 0, offset };
                let key = keys.key_of(&honest(victim).position(position).build()).unwrap();
                let mut evil = Message::builder(payload).message_id(format!("evil {number}"));
                evil = evil.header(HEADER_SCOPE, "billing");
                for _ in 0..rng.usize(1..8) {
                    let name = NAMES[rng.usize(..NAMES.len())];
                    let value = VALUES[rng.usize(..VALUES.len())].to_owned();
                    let is_key = name == HEADER_KEY && rng.bool();
                    evil = evil.header(name, if is_key { key.to_string() } else { value });
                }
                world.broker.publish(evil);
            }
            let worker = world.worker_that(own).with(|worker| worker.keys = vec![source.clone()]).start_ok();
            world.empty().await;
            let _ = worker.end().await;
            let effects = world.ids();
            for n in 0..HONEST {
                let id = format!("honest {n}");
                let count = effects.iter().filter(|own| **own == id).count();
                assert_eq!(count, 1, "{id} with {source}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_position_that_retries_lose_is_no_key() {
    let world = World::new();
    let built = |keys: Vec<KeySource>| {
        let worker = world.worker().with(|worker| {
            worker.keys = keys;
            worker.consumer = |capabilities| capabilities.retries_lose_position = true;
        });
        worker.pipeline().0.handler(handler_fn((), |(), _| async { Ok(()) }))
    };
    for keys in [
        vec![KeySource::MessageId, KeySource::Position],
        vec![KeySource::Composite(vec![KeySource::MessageId, KeySource::Position])],
    ] {
        let refused = built(keys).expect_err("it is refused");
        assert!(refused.to_string().contains("another position"), "{refused}");
    }
    assert!(built(vec![KeySource::MessageId]).is_ok());
}
