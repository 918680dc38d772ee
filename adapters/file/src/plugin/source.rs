//! `[source.file]`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use onceward::adapter::{CheckpointStore, Consumer};
use onceward::pipeline::config::Ordering;
use onceward::{DeadLetters, Error, ErrorKind, KeySource, OwnHeaders, Publisher, Scope};
use onceward_plugin::value::ByteCount;
use onceward_plugin::{
    Backlog, Checked, Context, DeadLetterStatus, Finding, Letters, Problem, Secrets, SourceFacts,
    SourceParts, SourcePlugin, TemporarySource, check, table,
};

use super::temporary;
use crate::{FileConfig, FileConsumer, FilePublisher, Format};

table! {
    /// A file of lines, or standard input.
    FileSource [] {
        /// The file, or `-` for standard input, which keeps no offset. A relative path starts from the directory of the
        /// configuration file.
        pub path: PathBuf,
        /// The format of a line.
        #[serde(default)]
        pub format: Format,
        /// Waits for more lines at the end of the file instead of finishing.
        #[serde(default)]
        pub follow: bool,
        /// The longest line taken as a message; a longer one is poison and is set aside. From 1 byte to 1GiB.
        #[serde(default = "default_max_message_bytes")]
        pub max_message_bytes: ByteCount,
    }
}

const fn default_max_message_bytes() -> ByteCount {
    ByteCount::mib(FileConfig::DEFAULT_MAX_MESSAGE_BYTES / (1024 * 1024))
}

impl FileSource {
    /// True for standard input, which cannot be read again and so keeps no offset.
    pub fn is_standard_input(&self) -> bool {
        self.path == Path::new("-")
    }

    /// The file as the configuration means it.
    fn file(&self, context: &Context<'_>) -> PathBuf {
        if self.is_standard_input() { self.path.clone() } else { context.resolve(&self.path) }
    }

    fn options(&self, context: &Context<'_>) -> FileConfig {
        let mut file = FileConfig::new(self.file(context));
        file.format = self.format;
        file.follow = self.follow;
        file.max_message_bytes = self.max_message_bytes.get();
        file
    }
}

impl Secrets for FileSource {}

#[async_trait]
impl SourcePlugin for FileSource {
    fn describe(&self, context: &Context<'_>) -> String {
        format!("file:{}", self.file(context).display())
    }

    fn facts(&self) -> SourceFacts {
        SourceFacts {
            has_record_keys: false,
            has_identity: false,
            default_ordering: Ordering::None,
            reorders_retries: false,
            is_private: true,
            ends: !self.follow,
            reports_idle: true,
            needs_letter_headers: true,
        }
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        if self.path.as_os_str().to_string_lossy().trim().is_empty() {
            return Err(context.problem("path", "is empty", "write where it is"));
        }
        let bytes = self.max_message_bytes.get();
        check::within(context, "max_message_bytes", bytes, FileConfig::MAX_MESSAGE_BYTES)?;
        if bytes > context.pipeline.max_in_flight_bytes as u64 {
            return Err(context.problem(
                "max_message_bytes",
                "is more than pipeline.max_in_flight_bytes, so the longest message could never be taken",
                "lower max_message_bytes or raise max_in_flight_bytes",
            ));
        }
        let is_source = |to: &Path| is_same_path(&context.resolve(to), &context.resolve(&self.path));
        if context.dead_letter.is_some_and(|to| is_source(to.expose().as_ref())) {
            return Err(Problem::new(
                "dead_letter.to",
                "is the file that messages come from",
                "give dead letters a destination of their own",
            ));
        }
        Ok(())
    }

    /// A raw line has neither headers nor an id.
    fn advice(&self, context: &Context<'_>) -> Vec<Finding> {
        fn is_absent(source: &KeySource) -> bool {
            match source {
                KeySource::Header(_) | KeySource::MessageId => true,
                KeySource::Composite(parts) => parts.iter().any(is_absent),
                _ => false,
            }
        }
        if self.format != Format::Raw {
            return Vec::new();
        }
        let absent = context.key_sources.iter().position(is_absent).map(|index| {
            Problem::new(
                format!("key.from[{index}]"),
                "is never present, since a raw line has neither headers nor an id",
                r#"write format = "envelope" in [source.file], or take the key from json:/… or position"#,
            )
            .into_warning("file-key-absent")
        });
        absent.into_iter().collect()
    }

    fn max_message_bytes(&mut self) -> Option<&mut ByteCount> {
        Some(&mut self.max_message_bytes)
    }

    async fn open(&self, context: &Context<'_>, parts: SourceParts) -> Result<Box<dyn Consumer>, Error> {
        let mut options = self.options(context);
        options.own_headers = parts.own_headers;
        Ok(Box::new(FileConsumer::open(options, parts.scope, parts.checkpoints).await?))
    }

    async fn dead_letters(
        &self,
        context: &Context<'_>,
        to: &str,
        _: OwnHeaders,
    ) -> Result<DeadLetters, Error> {
        let path = context.resolve(to.as_ref());
        refuse_same_file(&path, &context.resolve(&self.path))?;
        Ok(DeadLetters::new(Arc::new(FilePublisher::new()), path.to_string_lossy()))
    }

    async fn letters(&self, context: &Context<'_>, from: &str, parts: SourceParts) -> Result<Letters, Error> {
        let mut letters = FileConfig::new(context.resolve(from.as_ref()));
        (letters.format, letters.own_headers) = (Format::Envelope, parts.own_headers);
        let from = FileConsumer::open(letters, parts.scope, parts.checkpoints).await?;
        if self.is_standard_input() {
            let what =
                "the source is standard input, to which nothing can be published; pipe the letters into it";
            return Err(Error::new(ErrorKind::Config, "take dead letters back", what));
        }
        let to = self.file(context).to_string_lossy().into_owned();
        Ok(Letters { from: Box::new(from), to: Arc::new(FilePublisher::new()), destinations: vec![to] })
    }

    fn reads_letters_freely(&self) -> bool {
        true
    }

    async fn publisher(&self, _: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        let what = "a file source has no broker to publish to; name one as [outbox.NAME]";
        Err(Error::new(ErrorKind::Config, "open the relay's broker", what))
    }

    async fn backlog(
        &self,
        context: &Context<'_>,
        scope: &Scope,
        checkpoints: &dyn CheckpointStore,
    ) -> Result<Option<Backlog>, Error> {
        let found = crate::backlog(&self.options(context), scope, checkpoints).await?;
        Ok(found.map(|found| Backlog { messages: found.messages, bytes: Some(found.bytes), consumers: None }))
    }

    async fn dead_letter_status(&self, context: &Context<'_>, to: &str) -> Result<DeadLetterStatus, Error> {
        let path = context.resolve(to.as_ref());
        let place = path.display().to_string();
        let counted = tokio::task::spawn_blocking(move || lines(&path)).await;
        let letters = counted.map_err(io::Error::from).flatten().map_err(|error| {
            let what = format!("{place} cannot be read ({error}); make it readable for this user");
            Error::new(ErrorKind::Config, "count the dead letters", what)
        })?;
        Ok(DeadLetterStatus { place, letters: Some(letters) })
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<Vec<Finding>, Error> {
        let path = (!self.is_standard_input()).then(|| self.file(context));
        Ok(vec![super::inspect::source(context, path.as_deref(), self.follow)])
    }

    async fn inspect_dead_letters(&self, context: &Context<'_>, to: &str) -> Result<Finding, Error> {
        Ok(super::inspect::dead_letters(&context.resolve(to.as_ref())))
    }

    async fn temporary(&self, context: &Context<'_>, prefix: &str) -> Result<TemporarySource, Error> {
        // For standard input it is in the directory of the configuration.
        let original = if self.is_standard_input() { Path::new("stdin") } else { &self.path };
        let table = Self { path: temporary::beside(original, prefix), ..self.clone() };
        temporary::create(context.resolve(&table.path), self.format, Box::new(table)).await
    }
}

/// The check refuses equal paths; links are followed here. A file that does not exist is no other's link.
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

/// Equal once `.` and doubled slashes are removed. Links are followed when the files are opened.
fn is_same_path(one: &Path, other: &Path) -> bool {
    let parts = |path: &Path| {
        path.components()
            .filter(|part| *part != Component::CurDir)
            .map(|part| part.as_os_str().to_owned())
            .collect::<Vec<_>>()
    };
    parts(one) == parts(other)
}

/// The lines of a file; none if it does not exist.
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

#[cfg(test)]
mod tests {
    use onceward_plugin::documentation::{SharedOption, assert_documented};

    use super::*;

    #[test]
    fn table_and_struct_document_the_range_and_default_of_the_code() {
        let largest = FileConfig::MAX_MESSAGE_BYTES.end() / (1024 * 1024 * 1024);
        assert_documented::<FileSource>(
            include_str!("../config.rs"),
            &[SharedOption {
                option: "max_message_bytes",
                field: "max_message_bytes",
                range: Some(format!("from 1 byte to {largest}GiB")),
                default: Some(default_max_message_bytes().to_string()),
            }],
        );
    }

    #[test]
    fn a_link_to_the_source_is_no_destination_of_dead_letters() {
        let folder = tempfile::tempdir().unwrap();
        let (source, link) = (folder.path().join("orders.ndjson"), folder.path().join("dead.ndjson"));
        std::fs::write(&source, "").unwrap();
        std::os::unix::fs::symlink(&source, &link).unwrap();
        let error = refuse_same_file(&link, &source).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(refuse_same_file(&folder.path().join("other.ndjson"), &source).is_ok());
    }
}
