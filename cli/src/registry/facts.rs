//! What can be seen of a source and its dead letters from outside, without taking a message.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use onceward::store::Advice;
use onceward::{CheckpointStore, Error, ErrorKind, Scope};

use super::{file_config, not_in_this_build};
use crate::config::{Config, Source};

/// What waits in a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Messages that no worker has yet; `None` where counting them would take long.
    pub(crate) messages: Option<u64>,
    /// Their bytes, where the source tells.
    pub(crate) bytes: Option<u64>,
    /// Consumers at work, where the broker tells.
    pub(crate) consumers: Option<u64>,
}

/// What is known of it, in words; nothing if nothing is.
impl fmt::Display for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.messages, "messages"), (self.bytes, "bytes"), (self.consumers, "consumers")];
        let known = parts.into_iter().filter_map(|(count, what)| Some((count?, what)));
        for (place, (count, what)) in known.enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {what}")?;
        }
        Ok(())
    }
}

/// Where dead letters are, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadLetterFacts {
    /// A file, queue, exchange or topic.
    pub(crate) place: String,
    /// How many there are; `None` where the place does not tell.
    pub(crate) letters: Option<u64>,
}

/// What waits in the source; `None` where it cannot tell.
///
/// # Errors
/// [`Error`] if it cannot be looked at, or is not there.
pub(crate) async fn backlog(
    config: &Config,
    scope: &Scope,
    checkpoints: &dyn CheckpointStore,
) -> Result<Option<Backlog>, Error> {
    match &config.source {
        Source::File(source) => {
            let source = file_config(config, source);
            let found = onceward_file::backlog(&source, scope, checkpoints).await?;
            Ok(found.map(|found| Backlog {
                messages: found.messages,
                bytes: Some(found.bytes),
                consumers: None,
            }))
        }
        #[cfg(feature = "rabbitmq")]
        Source::Rabbitmq(_) => broker_backlog(config).await,
        #[cfg(feature = "sqs")]
        Source::Sqs(_) => broker_backlog(config).await,
        #[cfg(feature = "kafka")]
        Source::Kafka(_) => broker_backlog(config).await,
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        other => Err(not_in_this_build(&format!("source.{}", other.name()))),
    }
}

/// As [`backlog`], for sources that keep their own account of how far they were read; `None` for all others.
///
/// # Errors
/// As for [`backlog`].
pub(crate) async fn broker_backlog(config: &Config) -> Result<Option<Backlog>, Error> {
    match &config.source {
        #[cfg(feature = "rabbitmq")]
        Source::Rabbitmq(source) => {
            let queue = super::rabbitmq::endpoint(config, source)?.source_facts(&source.queue).await?;
            Ok(Some(Backlog {
                messages: Some(queue.ready.into()),
                bytes: None,
                consumers: Some(queue.consumers.into()),
            }))
        }
        #[cfg(feature = "sqs")]
        Source::Sqs(source) => {
            let queue = super::sqs::facts(source, source.queue_url.expose()).await?;
            let messages = Some(queue.visible.saturating_add(queue.delayed));
            Ok(Some(Backlog { messages, bytes: None, consumers: None }))
        }
        #[cfg(feature = "kafka")]
        Source::Kafka(source) => {
            let facts = super::kafka::options(config, source)?.inspect_group().await?;
            Ok(Some(Backlog {
                messages: Some(facts.lag),
                bytes: None,
                consumers: Some(facts.members.into()),
            }))
        }
        _ => Ok(None),
    }
}

/// What the broker says of the source, compared with the configuration; for sources whose broker tells.
///
/// # Errors
/// As for [`backlog`].
pub(crate) async fn broker_advice(config: &Config) -> Result<Vec<Advice>, Error> {
    match &config.source {
        #[cfg(feature = "sqs")]
        Source::Sqs(source) => super::sqs::advice(config, source).await,
        #[cfg(feature = "kafka")]
        Source::Kafka(source) => super::kafka::advice(config, source).await,
        _ => Ok(Vec::new()),
    }
}

/// The dead letters; `None` without a place for them.
///
/// # Errors
/// [`Error`] if the place cannot be looked at, or is not there.
pub(crate) async fn dead_letter_facts(config: &Config) -> Result<Option<DeadLetterFacts>, Error> {
    let Some(dead_letter) = &config.dead_letter else { return Ok(None) };
    let to = dead_letter.to.expose();
    match &config.source {
        Source::File(_) => {
            let path = config.resolve(to.as_ref());
            let place = path.display().to_string();
            let letters = lines(&path).map_err(|error| {
                let what = format!("{place} cannot be read ({error}); make it readable for this user");
                Error::new(ErrorKind::Config, "count the dead letters", what)
            })?;
            Ok(Some(DeadLetterFacts { place, letters: Some(letters) }))
        }
        #[cfg(feature = "rabbitmq")]
        Source::Rabbitmq(source) => {
            let found = super::rabbitmq::endpoint(config, source)?.destination_facts(to).await?;
            let letters = found.map(|queue| queue.ready.into());
            Ok(Some(DeadLetterFacts { place: dead_letter.to.redacted(), letters }))
        }
        #[cfg(feature = "sqs")]
        Source::Sqs(source) => {
            let found = super::sqs::dead_letter_facts(source, to).await?;
            let letters = Some(found.visible.saturating_add(found.in_flight).saturating_add(found.delayed));
            Ok(Some(DeadLetterFacts { place: dead_letter.to.redacted(), letters }))
        }
        #[cfg(feature = "kafka")]
        Source::Kafka(source) => {
            let topic =
                super::kafka::writable(&super::kafka::options(config, source)?.connection, to).await?;
            Ok(Some(DeadLetterFacts { place: dead_letter.to.redacted(), letters: Some(topic.records) }))
        }
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        other => Err(not_in_this_build(&format!("source.{}", other.name()))),
    }
}

/// The lines of a file; none if it is not there.
fn lines(path: &Path) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::with_capacity(256 * 1024, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut lines = 0;
    loop {
        let buffer = file.fill_buf()?;
        if buffer.is_empty() {
            return Ok(lines);
        }
        lines += buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
        let read = buffer.len();
        file.consume(read);
    }
}
