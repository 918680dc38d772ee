//! Opens the dead-letter destination to take letters from it, and the source to publish them to.

use std::sync::Arc;

use onceward::dead_letter::HEADER_ORIGIN;
use onceward::{CheckpointStore, Consumer, Error, ErrorKind, Message, OwnHeaders, Publisher, Scope};
use onceward_file::{FileConfig, FileConsumer, FilePublisher, Format};

use super::not_in_this_build;
use super::own_headers::own_headers;
use crate::config::{Config, Source};

/// Where letters are taken from, and how they get back.
pub(crate) struct Letters {
    pub(crate) from: Box<dyn Consumer>,
    pub(crate) to: Arc<dyn Publisher>,
    /// Where each is published; of several topics the one it came from.
    destinations: Vec<String>,
    /// What the letters are sealed with, and whose are believed.
    pub(crate) own: OwnHeaders,
    /// The source recognises a letter by its headers alone, and so has to be sent them.
    pub(crate) needs_headers: bool,
}

impl Letters {
    /// Where `letter` goes.
    pub(crate) fn destination(&self, letter: &Message) -> String {
        let origin = letter.header(HEADER_ORIGIN).and_then(|origin| std::str::from_utf8(origin).ok());
        let own = self.destinations.iter().find(|own| Some(own.as_str()) == origin);
        own.or(self.destinations.first()).cloned().unwrap_or_default()
    }
}

/// Opens both ends. `queue` replaces `dead_letter.to`, where that is no queue.
///
/// # Errors
/// [`Error`] if there is no such destination, or one of the two cannot be used.
pub(crate) async fn open_letters(
    config: &Config,
    scope: &Scope,
    checkpoints: Arc<dyn CheckpointStore>,
    queue: Option<&str>,
) -> Result<Letters, Error> {
    let missing = || {
        let what = "there is no [dead_letter] in the configuration; add it, with the place that letters were sent to";
        Error::new(ErrorKind::Config, "take dead letters back", what)
    };
    let given = queue.or_else(|| Some(config.dead_letter.as_ref()?.to.expose()));
    let place = given.ok_or_else(missing)?.to_owned();
    let own = own_headers(config)?;
    let (from, to, destinations): (Box<dyn Consumer>, Arc<dyn Publisher>, Vec<String>) = match &config.source
    {
        Source::File(source) => {
            let mut letters = FileConfig::new(config.resolve(place.as_ref()));
            (letters.format, letters.own_headers) = (Format::Envelope, own.clone());
            let from = FileConsumer::open(letters, scope.clone(), checkpoints).await?;
            if source.is_standard_input() {
                let what = "the source is standard input, to which nothing can be published; pipe the letters into it";
                return Err(Error::new(ErrorKind::Config, "take dead letters back", what));
            }
            let to = config.resolve(&source.path).to_string_lossy().into_owned();
            (Box::new(from), Arc::new(FilePublisher::new()), vec![to])
        }
        #[cfg(feature = "rabbitmq")]
        Source::Rabbitmq(source) => super::rabbitmq::letters(config, source, &place, &own).await?,
        #[cfg(feature = "sqs")]
        Source::Sqs(source) => super::sqs::letters(config, source, &place, &own).await?,
        #[cfg(feature = "kafka")]
        Source::Kafka(source) => super::kafka::letters(config, source, &place).await?,
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        other => return Err(not_in_this_build(&format!("source.{}", other.name()))),
    };
    let needs_headers = matches!(config.source, Source::File(_));
    Ok(Letters { from, to, destinations, own, needs_headers })
}
