//! `onceward bench`: measures throughput with the source and the store of a configuration, on a source of its own.
//!
//! ```text
//! contestant ─▶ run: temporary source ─▶ messages ─▶ loops, pipeline ─▶ metered ─▶ ledger_check ─▶ report ─▶ text, JSON
//! ```

mod contestant;
mod ledger_check;
mod loops;
mod messages;
mod metered;
mod report;
mod run;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use onceward::{Error, Scope};
use tokio_util::sync::CancellationToken;

use self::contestant::Contestant;
use self::messages::Messages;
use self::report::BenchReport;
use self::run::{Bench, Measured};
use super::consent::consent;
use super::failure::{failure, load, sentence};
use super::keys::time;
use super::progress::PacedProgress;
use crate::args::BenchArgs;
use crate::config::{Lookup, key_extractor};
use crate::exit::{Exit, Failure};
use crate::logging;
use crate::output::{Output, complain};
use crate::registry::{self, Purpose};
use crate::signals::Signals;

/// Measures, and prints rates and ratios.
pub(super) async fn bench(args: &BenchArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = load(&args.report.config.file, env)?;
    // The lines of each run's start and end are not what is looked for here.
    let quiet = |name: &str| env(name).or_else(|| (name == "ONCEWARD_LOG").then(|| "warn".to_owned()));
    logging::start(config.telemetry.log, &quiet)?;
    let configured = contestant::configured(&config);
    let tuned = contestant::tuned(&configured);
    let number = fastrand::u32(..);
    let suffix = format!("onceward-bench-{number:08x}");
    let scope = Scope::parse(&format!("{}.{suffix}", config.scope)).map_err(|error| failure(&error))?;
    let keys = key_extractor(&configured, &scope);
    let messages = Messages::new(&configured, args.messages, args.duplicates, args.size);
    let question = format!(
        "Create temporary sources beside {}, named {suffix}-N…, and keys in the scope {scope} of {}, and remove both at the end?",
        registry::describe_source(&config),
        registry::describe_store(&config),
    );
    consent(args.yes, &question, "create a temporary source")?;

    let signals = Signals::catch()?;
    let stop = CancellationToken::new();
    // What is there while a run is under way.
    let present = RefCell::new(None);
    let leaves_keys = Cell::new(false);
    let is_in_memory = configured.store.plugin().facts().is_in_memory;
    let work = async {
        // A store without its schema is not given one by a measurement.
        let purpose = if is_in_memory { Purpose::Run } else { Purpose::Operate };
        let store = registry::open_store(&configured, purpose).await.map_err(|error| failure(&error))?;
        let bench = Bench {
            configured: &configured,
            tuned: &tuned,
            scope: &scope,
            keys: &keys,
            store: &store,
            messages: &messages,
            stop: &stop,
            leaves_keys: &leaves_keys,
        };
        let measured = rounds(&bench, args.rounds, number, &suffix, &present).await;
        store.close().await;
        measured
    };
    let on_first = || complain("stopping; removing what was created; signal again to exit at once");
    let measured = match signals.drain(&stop, work, on_first).await {
        Ok(measured) => measured?,
        Err(exit) => {
            let place = present.borrow();
            if let Some(place) = place.as_deref() {
                complain(format_args!("left: {place}"));
            }
            // Those of a run are forgotten when it is over.
            if !is_in_memory && (place.is_some() || leaves_keys.get()) {
                complain(left_keys(&scope, contestant::keys_expire_within(&configured)));
            }
            return Ok(exit);
        }
    };
    // Those in memory are gone with this process.
    let left = (leaves_keys.get() && !is_in_memory).then(|| contestant::keys_expire_within(&configured));
    let Some(measured) = measured else { return Err(stopped(&scope, left)) };
    let report =
        BenchReport { config: &config, args, tuned: &tuned, suffix: &suffix, measured: &measured, left };
    match args.report.json {
        true => out.json(&report.as_json())?,
        false => report.lines().into_iter().try_for_each(|line| out.line(line))?,
    }
    Ok(Exit::Done)
}

/// What is said of keys of `scope` that may not be forgotten.
fn left_keys(scope: &Scope, expire_within: Duration) -> String {
    format!("left: keys of the scope {scope}, which expire within {}", time(expire_within))
}

/// The end after a signal; `left`: within what time the keys that are left expire.
fn stopped(scope: &Scope, left: Option<Duration>) -> Failure {
    complain("a signal came before the measurement was over; all temporary sources are removed");
    if let Some(expire_within) = left {
        complain(left_keys(scope, expire_within));
    }
    Failure::silent(Exit::Failed)
}

/// Measures all contestants, each round in another order. `None`: a signal has stopped it, and its sources are removed.
async fn rounds(
    bench: &Bench<'_>,
    rounds: u32,
    number: u32,
    suffix: &str,
    present: &RefCell<Option<String>>,
) -> Result<Option<Vec<Measured>>, Failure> {
    let mut progress = PacedProgress::new(None);
    let mut measured = Vec::new();
    let mut run = 0;
    for round in 1..=rounds {
        let mut contestants = Contestant::ALL;
        contestants.rotate_left(round as usize % Contestant::ALL.len());
        for contestant in contestants {
            run += 1;
            let prefix = format!("{suffix}-{run}");
            present.replace(Some(format!(
                "what was being created, if it was, under a name that begins with {prefix}"
            )));
            let created = registry::create_temporary_source(bench.configured, &prefix).await;
            let temporary = created.map_err(|error| failure(&error))?;
            present.replace(Some(temporary.place.clone()));
            let ran = bench.run(contestant, round, number.wrapping_add(run), &temporary, &mut progress).await;
            let place = temporary.place.clone();
            let removed = temporary.remove().await;
            let ran = ran.map_err(|error| left(failure(&error), &place, removed.as_ref().err()))?;
            if let Err(error) = removed {
                return Err(left(Failure::silent(Exit::Failed), &place, Some(&error)));
            }
            present.replace(None);
            let Some(ran) = ran else { return Ok(None) };
            progress.print(format_args!("round {round} of {rounds}, {}: measured", contestant.name()));
            measured.push(ran);
        }
    }
    Ok(Some(measured))
}

/// `failure`, after a line about what could not be removed.
fn left(failure: Failure, place: &str, error: Option<&Error>) -> Failure {
    if let Some(error) = error {
        complain(format_args!("{}; remove {place} by hand", sentence(error)));
    }
    failure
}
