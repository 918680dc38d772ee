//! Finds where dead letters go: to the source's own broker, and for a file to another file.

use std::path::Path;
use std::sync::Arc;

use onceward::{DeadLetters, Error, ErrorKind};
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
        Source::File(source) => {
            let path = config.resolve(dead_letter.to.expose().as_ref());
            refuse_same_file(&path, &config.resolve(&source.path))?;
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

/// The configuration refuses equal paths; links are followed here. A file that does not exist is no other's link.
fn refuse_same_file(letters: &Path, source: &Path) -> Result<(), Error> {
    match (letters.canonicalize(), source.canonicalize()) {
        (Ok(letters), Ok(source)) if letters == source => Err(Error::new(
            ErrorKind::Config,
            "use dead_letter.to",
            "it leads to the file that messages come from; give dead letters a file of their own",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_the_source_is_no_place_for_dead_letters() {
        let folder = tempfile::tempdir().unwrap();
        let (source, link) = (folder.path().join("orders.ndjson"), folder.path().join("dead.ndjson"));
        std::fs::write(&source, "").unwrap();
        std::os::unix::fs::symlink(&source, &link).unwrap();
        let error = refuse_same_file(&link, &source).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(refuse_same_file(&folder.path().join("other.ndjson"), &source).is_ok());
    }
}
