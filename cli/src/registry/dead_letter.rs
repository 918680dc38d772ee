//! Finds where dead letters go: to the source's own broker, and for a file to another file.

use std::sync::Arc;

use onceward::{DeadLetters, Error};
use onceward_file::FilePublisher;

use super::not_in_this_build;
use crate::config::{Config, Source};

/// The place for dead letters, if one is configured.
///
/// # Errors
/// [`Error`] if it cannot be reached, or this build cannot publish there.
pub(crate) async fn open_dead_letters(config: &Config) -> Result<Option<DeadLetters>, Error> {
    let Some(dead_letter) = &config.dead_letter else { return Ok(None) };
    match &config.source {
        Source::File(_) => {
            let path = config.resolve(dead_letter.to.expose().as_ref());
            let publisher = Arc::new(FilePublisher::new());
            Ok(Some(DeadLetters::new(publisher, path.to_string_lossy())))
        }
        #[cfg(feature = "rabbitmq")]
        Source::Rabbitmq(source) => {
            super::rabbitmq::dead_letters(config, source, dead_letter.to.expose()).await.map(Some)
        }
        #[cfg(feature = "sqs")]
        Source::Sqs(source) => super::sqs::dead_letters(source, dead_letter.to.expose()).await.map(Some),
        #[cfg(feature = "kafka")]
        Source::Kafka(source) => {
            super::kafka::dead_letters(config, source, dead_letter.to.expose()).map(Some)
        }
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        other => Err(not_in_this_build(&format!("source.{}", other.name()))),
    }
}
