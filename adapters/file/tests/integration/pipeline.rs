//! Files under a whole pipeline: from the lines to effects, dead letters and the kept offset.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::adapter::Consumer;
use onceward::telemetry::SourceState;
use onceward::{
    DeadLetters, ErrorKind, Handled, HandlerError, KeySource, MemoryStore, Message, Pipeline, Summary,
    handler_fn,
};
use onceward_file::{FileConfig, FilePublisher, Format};

use crate::support::{self, Checkpoints, append, file, open_with, scope};

/// What the handler did, in order.
type Effects = Arc<Mutex<Vec<String>>>;

async fn handle(effects: Effects, message: Message) -> Handled {
    let text = String::from_utf8_lossy(message.payload()).into_owned();
    if text == "refuse" {
        return Err(HandlerError::permanent("it asks for it"));
    }
    if text == "late" && message.attempt() < 3 {
        return Err(HandlerError::retry("not yet"));
    }
    effects.lock().unwrap().push(text);
    Ok(())
}

struct Run {
    store: Arc<MemoryStore>,
    checkpoints: Arc<Checkpoints>,
    effects: Effects,
}

impl Run {
    async fn over(&self, path: &std::path::Path, letters: &std::path::Path) -> Summary {
        let mut config = FileConfig::new(path);
        config.format = Format::Envelope;
        let consumer = open_with(config, &self.checkpoints).await;
        let publisher = Arc::new(FilePublisher::new());
        let pipeline = Pipeline::builder(scope(), consumer, Arc::clone(&self.store))
            .keys([KeySource::MessageId])
            .dead_letters(DeadLetters::new(publisher, letters.to_str().unwrap()))
            .handler(handler_fn(Arc::clone(&self.effects), handle))
            .unwrap();
        tokio::time::timeout(support::LIMIT, pipeline.run(Default::default())).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_file_runs_to_its_end_with_every_effect_once() {
    let mut lines: Vec<String> =
        (0..2000).map(|number| format!(r#"{{"id":"{number}","payload":"effect {number}"}}"#)).collect();
    let duplicates: Vec<_> = lines.iter().step_by(10).cloned().collect();
    lines.extend(duplicates);
    lines.push(r#"{"id":"late","payload":"late"}"#.into());
    lines.push(r#"{"id":"refuse","payload":"refuse"}"#.into());
    lines.push("no envelope".into());
    let (directory, path) = file(lines.join("\n") + "\n");
    let letters = directory.path().join("orders.dlq");
    let run = Run {
        store: Arc::new(MemoryStore::new()),
        checkpoints: Checkpoints::new(),
        effects: Effects::default(),
    };
    let summary = run.over(&path, &letters).await;
    assert_eq!((summary.received(), summary.handled(), summary.duplicates()), (2203, 2001, 200));
    let mut effects = run.effects.lock().unwrap().clone();
    effects.sort();
    effects.dedup();
    assert_eq!((effects.len(), run.effects.lock().unwrap().len()), (2001, 2001));
    let written = std::fs::read_to_string(&letters).unwrap();
    assert_eq!(written.lines().count(), 2);
    assert!(written.contains(r#""payload":"refuse""#) && written.contains(r#""payload":"no envelope""#));
    assert_eq!(run.checkpoints.offset(), std::fs::metadata(&path).unwrap().len());

    append(&path, "{\"id\":\"new\",\"payload\":\"effect new\"}\n{\"id\":\"7\",\"payload\":\"effect 7\"}\n");
    let summary = run.over(&path, &letters).await;
    assert_eq!((summary.received(), summary.handled(), summary.duplicates()), (2, 1, 1));
}

/// As a store for claims that refuses for a while: nothing starts, nothing is lost, the run continues.
#[tokio::test]
async fn a_store_that_refuses_to_keep_the_offset_for_a_while_is_waited_for() {
    for kind in [ErrorKind::Denied, ErrorKind::Config, ErrorKind::Unsupported, ErrorKind::Internal] {
        let (_directory, path) = file("one\ntwo\nthree\n");
        let (checkpoints, effects) = (Checkpoints::new(), Effects::default());
        *checkpoints.kind.lock().unwrap() = Some(kind);
        checkpoints.failing.store(true, Ordering::SeqCst);
        let consumer = open_with(FileConfig::new(&path), &checkpoints).await;
        let health = consumer.health().unwrap();
        let pipeline = Pipeline::builder(scope(), consumer, Arc::new(MemoryStore::new()))
            .keys([KeySource::PayloadHash])
            .park_exhausted()
            .handler(handler_fn(Arc::clone(&effects), handle))
            .unwrap();
        let running = tokio::spawn(pipeline.run(Default::default()));
        let begun = tokio::time::Instant::now();
        while !matches!(health.state(), SourceState::Down(_)) {
            assert!(begun.elapsed() < support::LIMIT && !running.is_finished(), "{kind:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // It is asked several times more.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!running.is_finished() && effects.lock().unwrap().is_empty(), "{kind:?}");
        checkpoints.failing.store(false, Ordering::SeqCst);
        let summary = tokio::time::timeout(support::LIMIT, running).await.unwrap().unwrap().unwrap();
        assert_eq!((summary.handled(), effects.lock().unwrap().len()), (3, 3), "{kind:?}");
        assert_eq!(health.state(), SourceState::Up, "{kind:?}");
    }
}
