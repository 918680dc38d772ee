//! Producers that may write whatever they like, among honest ones: headers of ours, of the broker's, letters that never were.

use std::collections::BTreeSet;

use onceward::{
    KeyExtractor, KeySource, Message, Outgoing, OwnHeaders, OwnSecrets, Publisher, Scope, own_headers::LETTER,
};
use onceward_rabbitmq::{RabbitmqEndpoint, RabbitmqPublisher};
use onceward_test_support::chance::Chance;
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;

use super::on;
use super::queue::{Queue, runtime};
use crate::pair::{LONG, Waiting, scene, stop};

const HONEST: usize = 1_000;
const HOSTILE: usize = 10_000;
const SCOPE: &str = "hostile";
const SECRET: &str = "a secret that nobody else knows";
/// What is done once: the message as it came, or what a handler reads of it with a parser of its own, which takes the first of
/// repeated names.
#[derive(Clone, Copy)]
enum Effect {
    Payload,
    Id,
}

impl Effect {
    fn statement(self) -> &'static str {
        match self {
            Self::Payload => "INSERT INTO effects (what) VALUES (CAST($1 AS TEXT))",
            Self::Id => "INSERT INTO effects (what) VALUES (json_extract($1, '$.id'))",
        }
    }

    fn of_honest(self, number: usize) -> String {
        match self {
            Self::Payload => honest(number),
            Self::Id => id(number).replace('"', ""),
        }
    }
}

/// Texts and numbers, as ids are.
fn id(number: usize) -> String {
    match number % 2 {
        0 => format!(r#""honest-{number}""#),
        _ => format!("{}", 1_000_000 + number),
    }
}

fn honest(number: usize) -> String {
    format!(r#"{{"id":{},"amount":7}}"#, id(number))
}

/// An attacker that knows scope and key sources, sees other producers' messages and computes their keys.
struct Producer<'c> {
    chance: &'c mut Chance,
    keys: KeyExtractor,
    stolen: OwnHeaders,
}

impl Producer<'_> {
    fn one_of<'v>(&mut self, values: &[&'v str]) -> &'v str {
        values[self.chance.number(0..values.len())]
    }

    fn payload(&mut self, number: usize) -> String {
        let honest_one = self.chance.number(0..HONEST);
        match self.chance.number(0..13) {
            // A copy of an honest message, to have its effect once more.
            0..4 => honest(honest_one),
            4 => format!(r#"{{"id":"honest-{honest_one}","id":"evil-{number}","amount":7}}"#),
            5 => format!(r#"{{"id":{}.0,"evil":{number}}}"#, 5_000_000 + number),
            6 => format!(r#"{{"id":{}e0,"evil":{number}}}"#, 6_000_000 + number),
            7 => format!(r#"{{"id":["evil-{number}"]}}"#),
            8 => format!("no JSON {number}"),
            // Other spellings of an honest id, and of the name.
            9 => format!(r#"{{"id":{}.0,"evil":{number}}}"#, 1_000_001 + honest_one / 2 * 2),
            10 => format!(r#"{{"\u0069d":{},"id":"evil-{number}"}}"#, id(honest_one)),
            11 => format!(r#"{{"id":{},"ID":"evil-{number}"}}"#, id(honest_one)),
            _ => format!(r#"{{"id":"evil-{number}"}}"#),
        }
    }

    /// The key of an honest message, one of no message, or no key at all.
    fn key(&mut self, number: usize) -> String {
        let victim = Message::builder(honest(self.chance.number(0..HONEST))).build();
        match self.chance.number(0..4) {
            0 => format!("{number:032x}"),
            1 => self.one_of(&["", "0", "not a key", "\u{0}"]).to_owned(),
            _ => self.keys.key_of(&victim).expect("it has a key").to_string(),
        }
    }

    fn headers(&mut self, number: usize) -> Vec<(String, String)> {
        let mut headers = vec![("onceward-key".to_owned(), self.key(number))];
        let generation =
            self.one_of(&["0", "1", "2", "1000000", "2147483647", "4294967295", "-1", "x", "00"]).to_owned();
        headers.push(("onceward-generation".to_owned(), generation));
        let scope = self.one_of(&[SCOPE, SCOPE, SCOPE, SCOPE, "other", "", "HOSTILE"]).to_owned();
        headers.push(("onceward-scope".to_owned(), scope));
        let others: [(&str, &[&str]); 12] = [
            ("onceward-reason", &["permanent", "mismatch", "missing-key", "defect", "nonsense"]),
            ("onceward-id", &["1", "honest-1"]),
            ("onceward-message-id", &["honest-2"]),
            ("onceward-attempts", &["0", "99"]),
            ("onceward-mac", &["", "1.00000000.00", "1..", "2.a.b"]),
            ("onceward-facts-mac", &["1.00000000.00"]),
            ("onceward-retry-due-ms", &["99999999999999"]),
            ("onceward-retry-position", &["a:0:1"]),
            ("amqp-user-id", &["admin"]),
            ("AMQP_Exchange", &["trusted"]),
            ("onceward-generation", &["7"]),
            ("onceward-key", &["00000000000000000000000000000000"]),
        ];
        for (name, values) in others {
            if self.chance.number(0..3) == 0 {
                headers.push((name.to_owned(), self.one_of(values).to_owned()));
            }
        }
        self.chance.shuffle(&mut headers);
        headers
    }

    /// A message with or without forged headers, some of them sealed with a secret that is not the operator's.
    fn message(&mut self, queue: &Queue<'_>, number: usize) -> Outgoing {
        let mut message = queue.message(&self.payload(number));
        if self.chance.number(0..10) == 0 {
            return message;
        }
        message.headers =
            self.headers(number).into_iter().map(|(name, value)| (name, value.into())).collect();
        if self.chance.number(0..4) == 0 {
            let pairs = || message.headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
            let sealed = self.stolen.seal_parts(&LETTER, pairs, Some(&message.payload));
            let (name, value) = sealed.expect("there is a secret");
            message.headers.retain(|(own, _)| own != name);
            message.headers.push((name.to_owned(), value));
        }
        message
    }
}

fn setup(queue: &Queue<'_>, dead: &Queue<'_>, source: &str, effect: Effect) -> Setup {
    on(queue, Setup::sql(effect.statement()).without("source.file"))
        .set("scope", SCOPE)
        .set("key.from", vec![source.to_owned()])
        .set("handler.sql.batch", 64)
        .set("source.rabbitmq.prefetch", 1_000)
        .set("pipeline.concurrency", 256)
        .set("store.sqlite.lease", "10s")
        .set("store.sqlite.timeout", "5s")
        .set("handler.sql.timeout", "8s")
        .set("dead_letter.to", dead.name.as_str())
}

fn every_honest_effect_happens_once(
    name: &str,
    source: KeySource,
    effect: Effect,
    change: impl Fn(Setup) -> Setup,
) {
    let (queue, dead) = (Queue::declare(name, &[]), Queue::declare(&format!("{name}-dead"), &[]));
    let mut chance = Chance::new();
    let source_text = source.to_string();
    let keys = KeyExtractor::new(&Scope::parse(SCOPE).expect("a scope"), vec![source]);
    let stolen = OwnSecrets::new(b"a secret of another operator's").expect("it is long enough");
    let stolen = OwnHeaders::authenticated(stolen);
    let mut producer = Producer { chance: &mut chance, keys, stolen };
    let mut messages: Vec<_> = (0..HOSTILE).map(|number| producer.message(&queue, number)).collect();
    messages.extend((0..HONEST).map(|number| queue.message(&honest(number))));
    chance.shuffle(&mut messages);
    runtime().block_on(async {
        let publisher =
            RabbitmqPublisher::open(RabbitmqEndpoint::new(queue.broker.url())).await.expect("a publisher");
        for batch in messages.chunks(500) {
            publisher.publish(batch).await.into_iter().for_each(|sent| sent.expect("a confirm"));
        }
    });
    let scene = scene(&change(setup(&queue, &dead, &source_text, effect)));
    scene.database().execute("CREATE TABLE effects (what TEXT)");
    let running = scene.run();
    until("an empty queue", LONG, || queue.is_empty());
    stop(vec![running]);
    let mut found = scene.database().texts("SELECT what FROM effects WHERE what IS NOT NULL");
    found.sort_unstable();
    assert!(found.is_sorted_by(|one, next| one < next), "an effect happened twice");
    let honest: BTreeSet<_> = (0..HONEST).map(|number| effect.of_honest(number)).collect();
    let missing: Vec<_> = honest.iter().filter(|effect| found.binary_search(effect).is_err()).collect();
    assert_eq!((honest.len(), missing), (HONEST, Vec::new()), "honest effects that did not happen");
}

#[test]
fn ten_thousand_hostile_messages_neither_repeat_nor_suppress_an_honest_effect_without_a_secret() {
    every_honest_effect_happens_once("hostile-hash", KeySource::PayloadHash, Effect::Payload, |setup| setup);
}

#[test]
fn ten_thousand_hostile_messages_neither_repeat_nor_suppress_an_honest_effect_with_one() {
    let source = KeySource::JsonPointer("/id".into());
    every_honest_effect_happens_once("hostile-id", source, Effect::Id, |setup| {
        setup.set("key.secret", SECRET)
    });
}
