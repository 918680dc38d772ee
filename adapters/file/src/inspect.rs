//! How much of a file is left to handle, without reading it as a source: [`backlog`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use onceward::{CheckpointStore, Error, Scope};

use crate::config::FileConfig;
use crate::error;
use crate::file_source::attach::{self, AttachedFile, Cause, Kind};
use crate::file_source::signatures::BOM;

/// Lines are counted up to so many bytes, 64 MiB: a moment's work.
const COUNTED_BYTES: u64 = 64 * 1024 * 1024;

/// What comes after the kept offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// In bytes, those of a rotated file that is not finished included.
    pub bytes: u64,
    /// In messages; `None` if it is more than 64 MiB. Lines that are in flight count, and so does a last one without
    /// its newline.
    pub messages: Option<u64>,
}

/// Looks up how far [`FileConsumer`](crate::FileConsumer) has come with the file, and measures the rest. It changes
/// nothing, and may be called while the file is being read. `None` for standard input, pipes and devices; a file that
/// is not there has no backlog.
///
/// # Errors
/// [`Error`] if the file cannot be read, or `checkpoints` does not answer.
///
/// # Cancel safety
/// It may be dropped and called again.
pub async fn backlog(
    config: &FileConfig,
    scope: &Scope,
    checkpoints: &dyn CheckpointStore,
) -> Result<Option<Backlog>, Error> {
    config.check()?;
    if config.is_standard_input() {
        return Ok(None);
    }
    let absolute =
        std::path::absolute(&config.path).map_err(|error| error::io("find", &config.path, error))?;
    let checkpoint = checkpoints.load_checkpoint(scope, &absolute.to_string_lossy()).await?;
    let (path, follow) = (config.path.clone(), config.follow);
    crate::consumer::blocking(move || {
        if attach::kind(&path)? == Kind::Stream {
            return Ok(None);
        }
        let Some(attached) = attach::attach(&path, checkpoint.as_ref(), follow)? else {
            return Ok(Some(Backlog { bytes: 0, messages: Some(0) }));
        };
        let mut rest = vec![measured(&path, &attached)?];
        if matches!(attached.cause, Cause::Renamed(_))
            && let Some(next) = attach::attach(&path, None, false)?
        {
            rest.push(measured(&path, &next)?);
        }
        let bytes = rest.iter().map(|backlog| backlog.bytes).sum();
        let messages = rest.iter().map(|backlog| backlog.messages).sum();
        Ok(Some(Backlog { bytes, messages }))
    })
    .await
}

fn measured(path: &Path, attached: &AttachedFile) -> Result<Backlog, Error> {
    let failed = |error| error::io("read", path, error);
    let length = attached.file.metadata().map_err(failed)?.len();
    let bytes = length.saturating_sub(attached.offset);
    let messages = match bytes {
        ..=COUNTED_BYTES => Some(messages(&attached.file, attached.offset, length).map_err(failed)?),
        _ => None,
    };
    Ok(Backlog { bytes, messages })
}

/// The lines between two offsets that are not empty.
fn messages(file: &File, from: u64, to: u64) -> io::Result<u64> {
    let mut buffer = vec![0; 256 * 1024];
    let (mut messages, mut at, mut is_empty) = (0, from, true);
    let mut mark = [0; BOM.len()];
    if at == 0 && to >= BOM.len() as u64 {
        file.read_exact_at(&mut mark, 0)?;
        at += if mark == *BOM { BOM.len() as u64 } else { 0 };
    }
    while at < to {
        let room = usize::try_from(to - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = file.read_at(&mut buffer[..room], at)?;
        if read == 0 {
            break;
        }
        for byte in &buffer[..read] {
            match byte {
                b'\n' => {
                    messages += u64::from(!is_empty);
                    is_empty = true;
                }
                // A line of nothing but a carriage return is empty, too.
                b'\r' => {}
                _ => is_empty = false,
            }
        }
        at += read as u64;
    }
    Ok(messages + u64::from(!is_empty))
}
