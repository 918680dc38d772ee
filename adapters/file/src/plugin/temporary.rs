//! A temporary file beside the source's: [`create`].

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use onceward::adapter::open_private;
use onceward::{Error, ErrorKind, Outgoing, Publisher};
use onceward_plugin::{Context, TemporarySource};

use super::source::FileSource;
use crate::{FilePublisher, Format, error};

/// Creates an empty file named as the source's, with `suffix` behind it. For standard input it is in the directory of the
/// configuration.
pub(super) async fn create(
    source: &FileSource,
    context: &Context<'_>,
    suffix: &str,
) -> Result<TemporarySource, Error> {
    let original = if source.is_standard_input() { Path::new("stdin") } else { &source.path };
    let mut name = original.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    let name = PathBuf::from(name);
    let path = context.resolve(&name);
    let created = open_private(&path, OpenOptions::new().write(true).create_new(true));
    created.map_err(|error| error::io("create the temporary file", &path, error))?;
    let publisher: Arc<dyn Publisher> = match source.format {
        Format::Raw => Arc::new(LinePublisher),
        Format::Envelope => Arc::new(FilePublisher::new()),
    };
    let table = FileSource { path: name, ..source.clone() };
    let (place, destination) = (path.display().to_string(), path.to_string_lossy().into_owned());
    let mut temporary = TemporarySource::new(place, Box::new(table), publisher, destination, remove(path));
    temporary.carries_headers = source.format == Format::Envelope;
    Ok(temporary)
}

async fn remove(path: PathBuf) -> Result<(), Error> {
    let removed = path.clone();
    let removal = tokio::task::spawn_blocking(move || fs::remove_file(removed)).await;
    removal
        .map_err(io::Error::from)
        .flatten()
        .map_err(|error| error::io("remove the temporary file", &path, error))
}

/// Appends payloads as lines of [`Format::Raw`], without a sync: the file is read by this process and removed.
struct LinePublisher;

#[async_trait]
impl Publisher for LinePublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        let Some(path) = batch.first().map(|message| PathBuf::from(&message.destination)) else {
            return Vec::new();
        };
        let lines =
            batch.iter().flat_map(|message| [&message.payload[..], b"\n"]).collect::<Vec<_>>().concat();
        let appended = tokio::task::spawn_blocking({
            let path = path.clone();
            move || OpenOptions::new().append(true).open(path)?.write_all(&lines)
        });
        let appended = appended.await.map_err(io::Error::from).flatten();
        let failed = appended.err().map(|error| error::io("append to", &path, error).to_string());
        let outcome = |_: &Outgoing| match &failed {
            None => Ok(()),
            Some(what) => Err(Error::new(ErrorKind::Unavailable, "fill the temporary file", what.clone())),
        };
        batch.iter().map(outcome).collect()
    }
}
