//! Opens the source.

use std::sync::Arc;

use onceward::{CheckpointStore, Consumer, Error, Scope};
use onceward_file::{FileConfig, FileConsumer, Format};

use super::not_in_this_build;
use super::own_headers::own_headers;
use crate::config::{Config, FileFormat, FileSource, Source};

/// Opens the source; `checkpoints` keeps how far it was read, where no broker does.
///
/// # Errors
/// [`Error`] if it cannot be used as it is configured, or `checkpoints` does not answer.
pub(crate) async fn open_source(
    config: &Config,
    scope: &Scope,
    checkpoints: Arc<dyn CheckpointStore>,
) -> Result<Box<dyn Consumer>, Error> {
    match &config.source {
        Source::File(source) => {
            let mut source = file_config(config, source);
            source.own_headers = own_headers(config)?;
            Ok(Box::new(FileConsumer::open(source, scope.clone(), checkpoints).await?))
        }
        #[cfg(feature = "rabbitmq")]
        Source::Rabbitmq(source) => Ok(Box::new(super::rabbitmq::open(config, source).await?)),
        #[cfg(feature = "sqs")]
        Source::Sqs(source) => Ok(Box::new(super::sqs::open(config, source).await?)),
        #[cfg(feature = "kafka")]
        Source::Kafka(source) => Ok(Box::new(super::kafka::open(config, source).await?)),
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        other => Err(not_in_this_build(&format!("source.{}", other.name()))),
    }
}

/// What the file adapter is told.
pub(crate) fn file_config(config: &Config, source: &FileSource) -> FileConfig {
    let path = if source.is_standard_input() { source.path.clone() } else { config.resolve(&source.path) };
    let mut file = FileConfig::new(path);
    file.format = match source.format {
        FileFormat::Raw => Format::Raw,
        FileFormat::Envelope => Format::Envelope,
    };
    file.follow = source.follow;
    file.max_message_bytes = source.max_message_bytes.get();
    file
}
