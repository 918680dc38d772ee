//! Files under a whole pipeline: from the lines to effects, dead letters and the kept offset.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};

use onceward::{
    DeadLetters, Handled, HandlerError, KeySource, MemoryStore, Message, Pipeline, Summary, handler_fn,
};
use onceward_file::{FileConfig, FilePublisher, Format};
use support::{Checkpoints, append, file, open_with, scope};

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
