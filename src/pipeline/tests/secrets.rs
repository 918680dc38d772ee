//! Rule 16: what a message carries never appears in logs.

use std::fmt::Write as _;

use tracing::field::{Field, Visit};
use tracing::span;

use super::*;
use crate::testing::{Fault, Operation};

const CANARY: &str = "s3cr3t-canary";

/// Writes every event of every level into one text.
#[derive(Clone, Default)]
pub(super) struct Everything(pub(super) Arc<Mutex<String>>);

struct Fields<'t>(&'t mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl tracing::Subscriber for Everything {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        span.record(&mut Fields(&mut self.0.lock().unwrap()));
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().unwrap()));
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = self.0.lock().unwrap();
        text.push('\n');
        event.record(&mut Fields(&mut text));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn secretive(id: Option<&str>) -> MessageBuilder {
    let message =
        Message::builder(format!("payload {CANARY}")).header("authorization", format!("Bearer {CANARY}"));
    match id {
        Some(id) => message.header("id", format!("{id}-{CANARY}")).order_key(CANARY),
        None => message,
    }
}

#[tokio::test(start_paused = true)]
async fn rule_16_neither_payload_nor_header_nor_key_nor_token_appears_in_any_log_line() {
    let everything = Everything::default();
    // While there is only one, tracing asks the thread that logs by a line for the first time, be it another test's, and
    // keeps its answer for all.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let guard = tracing::subscriber::set_default(everything.clone());
    let world = World::new();
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&tokens);
    let worker = world.worker().start(move |message| {
        seen.lock().unwrap().extend(message.owner_token());
        let id = String::from_utf8_lossy(message.header("id").unwrap_or(&Default::default())).into_owned();
        async move {
            match id.split('-').next().unwrap() {
                "fails" => Err(HandlerError::retry("no luck")),
                "dies" => panic!("no luck either"),
                "hangs" => std::future::pending().await,
                _ => Ok(()),
            }
        }
    });
    for operation in [Operation::Claim, Operation::Complete, Operation::Fail, Operation::Bury] {
        worker.store.next(operation, Fault::Refused);
    }
    worker.letters.next(Operation::Publish, Fault::Refused);
    worker.broker.next(Operation::Settle, Fault::Refused);
    for id in ["ok", "ok", "fails", "dies", "hangs"] {
        world.broker.publish(secretive(Some(id)));
    }
    world.broker.publish(secretive(None));
    world.empty().await;
    let _ = worker.end().await;
    drop(guard);
    let text = everything.0.lock().unwrap().clone();
    assert!(text.lines().count() > 15 && text.contains("dead-lettered"), "the log was captured:\n{text}");
    assert!(!text.contains(CANARY), "{text}");
    for token in tokens.lock().unwrap().iter() {
        assert!(!text.contains(&token.to_hex()), "{text}");
    }
}
