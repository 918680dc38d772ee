//! A temporary file beside the source's: [`create`], [`beside`].

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use onceward::adapter::open_private;
use onceward::{Error, ErrorKind, Outgoing, Publisher};
use onceward_plugin::{SourcePlugin, TemporarySource};

use crate::{FilePublisher, Format, error};

/// The name of a file beside `source`, with `prefix` in front of it.
pub(super) fn beside(source: &Path, prefix: &str) -> PathBuf {
    let mut name = OsString::from(format!("{prefix}."));
    name.push(source.file_name().unwrap_or_default());
    source.with_file_name(name)
}

/// Creates an empty file at `path`. `table` names it.
pub(super) async fn create(
    path: PathBuf,
    format: Format,
    table: Box<dyn SourcePlugin>,
) -> Result<TemporarySource, Error> {
    let created = open_private(&path, OpenOptions::new().write(true).create_new(true));
    created.map_err(|error| error::io("create the temporary file", &path, error))?;
    let publisher: Arc<dyn Publisher> = match format {
        Format::Raw => Arc::new(LinePublisher),
        Format::Envelope => Arc::new(FilePublisher::new()),
    };
    let (place, destination) = (path.display().to_string(), path.to_string_lossy().into_owned());
    let mut temporary = TemporarySource::new(place, table, publisher, destination, remove(path));
    temporary.carries_headers = format == Format::Envelope;
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
