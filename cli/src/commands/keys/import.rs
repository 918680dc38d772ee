//! `keys import`: completed keys of an earlier deduplication table.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::time::{Duration, SystemTime};

use onceward::{Key, KeyExtractor};
use serde::Serialize;

use super::Bench;
use super::complete::{BATCH, Outcome, complete};
use super::lines;
use super::naming::{extractor, source};
use crate::args::ImportArgs;
use crate::commands;
use crate::exit::{Exit, Failure};
use crate::handlers::text::io_words;
use crate::logging::AUDIT;
use crate::output::{Output, complain};

/// How many wrong lines are named one by one.
const NAMED: usize = 20;

/// The figures of an import. `lines` is the sum of the others.
#[derive(Debug, Default, Serialize)]
struct Imported {
    lines: u64,
    /// Completed now.
    imported: u64,
    /// Completed before, in the store.
    known: u64,
    /// Given more than once; the latest completion counts.
    repeated: u64,
    /// Completed longer ago than the store remembers.
    expired: u64,
    /// Claimed by a handler at the moment.
    in_progress: u64,
    /// Dead-lettered here.
    dead: u64,
}

/// Reads every line before the first key is written: nothing is imported if one is wrong. It may be repeated.
pub(super) async fn import(bench: &Bench<'_>, args: &ImportArgs, out: &mut Output) -> Result<Exit, Failure> {
    let keys = extractor(bench, &source(bench, &args.from));
    let input: Box<dyn BufRead> = match &args.lines {
        None => Box::new(io::stdin().lock()),
        Some(path) if path.as_os_str() == "-" => Box::new(io::stdin().lock()),
        Some(path) => match File::open(path) {
            Ok(file) => Box::new(BufReader::new(file)),
            Err(error) => {
                let sentence = format!(
                    "{}: cannot be read ({}); name a readable file",
                    path.display(),
                    io_words(&error)
                );
                return Err(Failure::new(Exit::Failed, sentence));
            }
        },
    };
    let mut figures = Imported::default();
    let entries = read(input, &keys, &mut figures)?;
    let entries = latest(entries, bench.config.limits().ttl.get(), &mut figures);
    let written = write(bench, &entries, &mut figures).await;
    tracing::info!(
        target: AUDIT,
        action = "import",
        scope = %bench.scope,
        imported = figures.imported,
        lines = figures.lines,
        "keys were completed by hand"
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
        complain("some keys are claimed by handlers and were left alone; import again when those have ended");
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// Every line's key and age.
fn read(
    input: impl BufRead,
    keys: &KeyExtractor,
    figures: &mut Imported,
) -> Result<Vec<(Key, Duration)>, Failure> {
    let now = SystemTime::now();
    let (mut entries, mut wrong) = (Vec::new(), 0_usize);
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
                wrong += 1;
                if wrong <= NAMED {
                    complain(format!("line {number}: {what}"));
                }
            }
        }
    }
    if wrong > 0 {
        let sentence =
            format!("{wrong} of {} lines are wrong, so nothing was imported; correct them", figures.lines);
        return Err(Failure::new(Exit::Failed, sentence));
    }
    Ok(entries)
}

/// Each key once, by its latest completion, with the time it is to be remembered from now on.
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
    bench: &Bench<'_>,
    entries: &[(Key, Duration)],
    figures: &mut Imported,
) -> Result<(), Failure> {
    for batch in entries.chunks(BATCH) {
        let mut failure = None;
        for outcome in complete(bench, batch).await {
            match outcome {
                Outcome::Completed => figures.imported += 1,
                Outcome::Known => figures.known += 1,
                Outcome::InProgress(_) => figures.in_progress += 1,
                Outcome::Dead(_) => figures.dead += 1,
                Outcome::Failed(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            let sentence = format!(
                "{}; {} keys were imported before that, and it is safe to import all of them again",
                commands::sentence(&error),
                figures.imported
            );
            return Err(Failure::new(Exit::Failed, sentence));
        }
    }
    Ok(())
}
