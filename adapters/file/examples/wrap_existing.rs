//! Puts Onceward between a byte stream that a program has already opened and its handler: here the output of a command.
//! Lines that cannot be handled go to a dead-letter file, which can itself be read as a source.
//!
//! ```sh
//! cargo run -p onceward-file --example wrap_existing_file
//! ```

use std::process::{Command, Stdio};
use std::sync::Arc;

use onceward::{
    DeadLetters, Handled, HandlerError, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn,
};
use onceward_file::{FileConfig, FileConsumer, FilePublisher, Format};

async fn charge(_app: (), message: Message) -> Handled {
    if message.payload().starts_with(b"refuse") {
        return Err(HandlerError::permanent("it asks for it"));
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let orders = r#"{"id":"1","payload":"charge 7"}
{"id":"1","payload":"charge 7"}
{"id":"2","payload":"refuse"}"#;
    let mut command = Command::new("printf").arg(orders).stdout(Stdio::piped()).spawn()?;
    let output = command.stdout.take().ok_or("the command has no output")?;

    let mut config = FileConfig::new("orders of the command");
    config.format = Format::Envelope;
    let consumer = FileConsumer::from_reader(config, output)?;
    let directory = tempfile::tempdir()?;
    let letters = directory.path().join("orders.dlq");
    let dead_letters = DeadLetters::new(Arc::new(FilePublisher::new()), letters.to_string_lossy());

    let pipeline = Pipeline::builder(Scope::parse("billing")?, consumer, Arc::new(MemoryStore::new()))
        .keys([KeySource::MessageId])
        .dead_letters(dead_letters)
        .handler(handler_fn((), charge))?;
    let summary = pipeline.run(Default::default()).await?;
    command.wait()?;
    assert_eq!((summary.received(), summary.handled(), summary.duplicates()), (3, 1, 1));
    assert!(std::fs::read_to_string(letters)?.contains(r#""payload":"refuse""#));
    Ok(())
}
