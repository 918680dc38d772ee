//! `onceward observe`: runs in observe mode for a time, and reports on duplicates.
//!
//! ```text
//! pipeline ─▶ observation (ages, sample) ─▶ report ─┬─▶ text, JSON
//!                                 ttl, key_advice ──┘ └▶ html, chart
//! ```

mod ages;
mod chart;
mod html;
mod key_advice;
mod limits;
mod markup;
mod observation;
mod report;
mod sample;
mod text;
mod ttl;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use onceward::telemetry::Observer;

use super::run::{Attached, SupervisedEnd, exit, supervise};
use crate::args::ObserveArgs;
use crate::config::{Config, Handler, HumanDuration, Lookup, Mode};
use crate::exit::{Exit, Failure};
use crate::handlers::text::io_words;
use crate::output::{Output, complain};

use observation::Observation;
use report::ObserveReport;

/// Runs the pipeline in observe mode until the time limit, the end of the source or a signal, and prints the report.
pub(super) async fn observe(args: &ObserveArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let mut config = super::failure::load(&args.run.config.file, env)?;
    require_a_claimless_handler(&config)?;
    // An hour of observation is not lost to a wrong path.
    let page = args.html.as_deref().map(create).transpose()?;
    let advice = config.advice();
    config.mode = Mode::Observe;
    let observation = Arc::new(Observation::default());
    let attached = Attached {
        advice,
        observer: Some(Arc::clone(&observation) as Arc<dyn Observer>),
        limit: args.limit.map(HumanDuration::get),
        notice: Some("observe mode: every message is handled, duplicates included"),
    };
    let ended = match supervise(&config, &args.run, attached, env).await? {
        SupervisedEnd::Stopped(exit) => return Ok(exit),
        SupervisedEnd::Ended(ended) => ended,
    };
    let report = ObserveReport::new(&config, &ended, &observation);
    // Before standard output, whose reader may have closed it.
    if let (Some(mut page), Some(path)) = (page, &args.html) {
        page.write_all(html::page(&report).as_bytes()).map_err(|error| cannot_write(path, &error))?;
    }
    print(&config, args.json, &report, out)?;
    Ok(exit(&config, args.run.until_empty, &ended))
}

/// Refuses a handler that needs claims: duplicates have none.
fn require_a_claimless_handler(config: &Config) -> Result<(), Failure> {
    if !matches!(config.handler, Handler::Sql(_)) {
        return Ok(());
    }
    let problem = "cannot run in observe mode, which handles duplicates without a claim";
    let fix = "observe with another handler, for example [handler.exec] with command = [\"true\"], in a scope of its own";
    Err(config.refuse("handler.sql", problem, fix).into())
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    let sentence =
        format!("--html: cannot write {} ({}); give the path of a file", path.display(), io_words(error));
    Failure::new(Exit::Failed, sentence)
}

/// Prints the report to standard output, or to standard error if the handler writes messages to standard output.
fn print(config: &Config, json: bool, report: &ObserveReport, out: &mut Output) -> Result<(), Failure> {
    let is_taken = matches!(config.handler, Handler::Stdout(_));
    match (json, is_taken) {
        (true, false) => out.json(report)?,
        // Numbers and texts are always serialized.
        (true, true) => complain(serde_json::to_string(report).unwrap_or_default()),
        (false, true) => text::lines(report).into_iter().for_each(complain),
        (false, false) => text::lines(report).into_iter().try_for_each(|line| out.line(line))?,
    }
    Ok(())
}
