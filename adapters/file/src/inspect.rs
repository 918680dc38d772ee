//! Measures the unprocessed part of a file without consuming it: [`backlog`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use onceward::adapter::CheckpointStore;
use onceward::{Error, Scope};

use crate::config::FileConfig;
use crate::error;
use crate::file_source::attach::{self, AttachCause, AttachedFile, PathKind};
use crate::file_source::signatures::BOM;

/// Lines are counted in at most this many bytes.
const COUNTED_BYTES: u64 = 64 * 1024 * 1024;

/// The part of a file after the saved offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Bytes, including those of a rotated file that is not finished.
    pub bytes: u64,
    /// Messages; `None` for more than 64 MiB. Lines in flight are included, and so is a last one without a newline.
    pub messages: Option<u64>,
}

/// Measures the part of a file that [`FileConsumer`](crate::FileConsumer) has not settled. It changes nothing, and may be called
/// while the file is consumed. `None` for standard input, pipes and devices; a missing file has no backlog.
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
        if attach::kind(&path)? == PathKind::Stream {
            return Ok(None);
        }
        let Some(attached) = attach::attach(&path, checkpoint.as_ref(), follow)? else {
            return Ok(Some(Backlog { bytes: 0, messages: Some(0) }));
        };
        let mut rest = vec![measure(&path, &attached)?];
        if matches!(attached.cause, AttachCause::Renamed(_))
            && let Some(next) = attach::attach(&path, None, false)?
        {
            rest.push(measure(&path, &next)?);
        }
        let bytes = rest.iter().map(|backlog| backlog.bytes).sum();
        let messages = rest.iter().map(|backlog| backlog.messages).sum();
        Ok(Some(Backlog { bytes, messages }))
    })
    .await
}

fn measure(path: &Path, attached: &AttachedFile) -> Result<Backlog, Error> {
    let failed = |error| error::io("read", path, error);
    let length = attached.file.metadata().map_err(failed)?.len();
    let bytes = length.saturating_sub(attached.offset);
    let messages = match bytes {
        ..=COUNTED_BYTES => Some(count_messages(&attached.file, attached.offset, length).map_err(failed)?),
        _ => None,
    };
    Ok(Backlog { bytes, messages })
}

/// Counts the lines between two offsets that are not empty.
fn count_messages(file: &File, from: u64, to: u64) -> io::Result<u64> {
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
                // A line with only a carriage return is empty, too.
                b'\r' => {}
                _ => is_empty = false,
            }
        }
        at += read as u64;
    }
    Ok(messages + u64::from(!is_empty))
}
