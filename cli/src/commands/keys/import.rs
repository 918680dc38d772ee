//! `keys import`: imports completed keys of an earlier deduplication table.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::time::{Duration, SystemTime};

use onceward::{Key, KeyExtractor};
use serde::Serialize;

use super::complete::{BATCH, CompleteOutcome, complete};
use super::context::KeysContext;
use super::lines;
use super::naming::{extractor, source};
use crate::args::ImportArgs;
use crate::commands::failure;
use crate::exit::{Exit, Failure};
use crate::handlers::text::io_words;
use crate::logging::AUDIT;
use crate::output::{Output, complain};

/// The most invalid lines that are reported one by one.
const REPORTED: usize = 20;

/// The counters of an import. `lines` is the sum of the others.
#[derive(Debug, Default, Serialize)]
struct Imported {
    lines: u64,
    /// Completed by the import.
    imported: u64,
    /// Completed in the store before.
    known: u64,
    /// Repeated in the input; the latest completion counts.
    repeated: u64,
    /// Completed longer ago than the TTL.
    expired: u64,
    /// Claimed by a handler.
    in_progress: u64,
    /// Dead-lettered.
    dead: u64,
}

/// Reads all lines before the first key is written: nothing is imported if one is invalid. It may be repeated.
pub(super) async fn import(
    context: &KeysContext<'_>,
    args: &ImportArgs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let keys = extractor(context, &source(context, &args.from));
    let input: Box<dyn BufRead> = match &args.lines {
        None => Box::new(io::stdin().lock()),
        Some(path) if path.as_os_str() == "-" => Box::new(io::stdin().lock()),
        Some(path) => match File::open(path) {
            Ok(file) => Box::new(BufReader::new(file)),
            Err(error) => {
                let sentence = format!(
                    "{}: cannot be read ({}); choose a readable file",
                    path.display(),
                    io_words(&error)
                );
                return Err(Failure::new(Exit::Failed, sentence));
            }
        },
    };
    let mut figures = Imported::default();
    let entries = read(input, &keys, &mut figures)?;
    let entries = latest(entries, context.config.limits().ttl.get(), &mut figures);
    let written = write(context, &entries, &mut figures).await;
    tracing::info!(
        target: AUDIT,
        action = "import",
        scope = %context.scope,
        imported = figures.imported,
        lines = figures.lines,
        "keys imported by the command"
    );
    written?;
    if args.report.json {
        out.json(&figures)?;
    } else {
        let Imported { lines, imported, known, repeated, expired, in_progress, dead } = figures;
        out.line(format_args!(
            "lines={lines} imported={imported} known={known} repeated={repeated} expired={expired} \
             in-progress={in_progress} dead={dead}"
        ))?;
    }
    if figures.in_progress > 0 {
        complain(
            "some keys are claimed by handlers and were not changed; repeat the import when the handlers have ended",
        );
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// Reads the key and age of each line.
fn read(
    input: impl BufRead,
    keys: &KeyExtractor,
    figures: &mut Imported,
) -> Result<Vec<(Key, Duration)>, Failure> {
    let now = SystemTime::now();
    let (mut entries, mut invalid) = (Vec::new(), 0_usize);
    for (number, line) in (1_u64..).zip(input.lines()) {
        let read = match line {
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) => lines::read(&line, keys, now),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("is not UTF-8".to_owned()),
            Err(error) => {
                let sentence = format!("line {number}: cannot be read ({error}); nothing was imported");
                return Err(Failure::new(Exit::Failed, sentence));
            }
        };
        figures.lines += 1;
        match read {
            Ok(entry) => entries.push(entry),
            Err(what) => {
                invalid += 1;
                if invalid <= REPORTED {
                    complain(format!("line {number}: {what}"));
                }
            }
        }
    }
    if invalid > 0 {
        let sentence = format!(
            "{invalid} of {} lines are invalid, so nothing was imported; correct them",
            figures.lines
        );
        return Err(Failure::new(Exit::Failed, sentence));
    }
    Ok(entries)
}

/// The latest completion of each key, with its remaining TTL.
fn latest(mut entries: Vec<(Key, Duration)>, ttl: Duration, figures: &mut Imported) -> Vec<(Key, Duration)> {
    entries.sort_unstable();
    let given = entries.len();
    entries.dedup_by_key(|(key, _)| *key);
    let distinct = entries.len();
    entries.retain_mut(|(_, time)| {
        *time = ttl.saturating_sub(*time);
        !time.is_zero()
    });
    figures.repeated = (given - distinct) as u64;
    figures.expired = (distinct - entries.len()) as u64;
    entries
}

async fn write(
    context: &KeysContext<'_>,
    entries: &[(Key, Duration)],
    figures: &mut Imported,
) -> Result<(), Failure> {
    for batch in entries.chunks(BATCH) {
        let mut failure = None;
        for outcome in complete(context, batch).await {
            match outcome {
                CompleteOutcome::Completed => figures.imported += 1,
                CompleteOutcome::Known => figures.known += 1,
                CompleteOutcome::InProgress(_) => figures.in_progress += 1,
                CompleteOutcome::Dead(_) => figures.dead += 1,
                CompleteOutcome::Failed(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            let sentence = format!(
                "{}; {} keys were imported before the failure; it is safe to repeat the import",
                failure::sentence(&error),
                figures.imported
            );
            return Err(Failure::new(Exit::Failed, sentence));
        }
    }
    Ok(())
}
