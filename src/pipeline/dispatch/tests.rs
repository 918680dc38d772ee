//! Checks the dispatcher under events that never cease.

use super::*;
use crate::extract::{KeyExtractor, KeySource};
use crate::handler::handler_fn;
use crate::key::Scope;
use crate::message::Message;
use crate::pipeline::config::PipelineConfig;
use crate::pipeline::run::{Parts, share};
use crate::pipeline::runner::plain::Plain;
use crate::store::MemoryStore;
use crate::testing::{Habits, MemoryBroker};

/// More than a task is given before it must let others run: 128 times 64 events.
const FLOOD: usize = 3 * 128 * 64;
const FLOODS: usize = 20;

#[tokio::test(start_paused = true)]
async fn rounds_that_have_ended_are_joined_although_events_never_cease() {
    let scope = Scope::parse("billing").unwrap();
    let keys = KeyExtractor::new(&scope, vec![KeySource::Header("id".into())]);
    let parts = Parts {
        scope,
        consumer: Box::new(MemoryBroker::new(Habits::default()).consumer()),
        store: Arc::new(MemoryStore::new()),
        keys,
        dead_letters: None,
        replies: None,
        config: PipelineConfig::default(),
        counters: Arc::default(),
        measurer: crate::pipeline::measure::Measurer::default(),
    };
    let runner = Plain(handler_fn((), |(), _: Message| async { Ok::<(), _>(()) }));
    let (events_in, mut events) = mpsc::unbounded_channel();
    let (context, _consumer) =
        share(parts, runner, events_in.clone(), tokio_util::sync::CancellationToken::new());
    let mut dispatcher = Dispatcher::new(context, Gate::new(), None);
    dispatcher.rounds.spawn(async { panic!("a fault of a round") });
    let flood = tokio::spawn(async move {
        for floods in 0..FLOODS {
            if events_in.is_closed() {
                return floods;
            }
            (0..FLOOD).for_each(|_| drop(events_in.send(Event::Flushed(0))));
            tokio::task::yield_now().await;
        }
        FLOODS
    });
    let drained = dispatcher.run(&mut events).await;
    drop(events);
    assert_eq!(drained, Drained::Panicked);
    let floods = flood.await.unwrap();
    assert!(floods < FLOODS, "its end was seen only after the flood");
}
