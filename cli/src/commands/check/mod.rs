//! `onceward check`: reports errors and warnings about a configuration and the systems it names.

mod finding;
mod online;

use crate::args::CheckArgs;
use crate::config::{Config, Lookup};
use crate::exit::{Exit, Failure};
use crate::output::Output;

use finding::{Finding, Severity};

/// Prints one finding per line, or one JSON object per line with `--json`.
pub(super) async fn check(args: &CheckArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let file = &args.report.config.file;
    let config = match super::failure::load_with(file, env) {
        Ok(config) => config,
        Err(error) if args.report.json => {
            out.json(&Finding::from(&error))?;
            return Err(Failure::silent(Exit::Config));
        }
        Err(error) => return Err(error.into()),
    };
    let mut worst = Severity::Ok;
    for finding in findings(&config, args.offline, env).await {
        worst = worst.max(finding.severity);
        if args.report.json { out.json(&finding)? } else { out.line(&finding)? }
    }
    Ok(if worst == Severity::Error { Exit::Failed } else { Exit::Done })
}

async fn findings(config: &Config, offline: bool, env: Lookup<'_>) -> Vec<Finding> {
    let mut findings: Vec<_> = config.advice().iter().map(Finding::from).collect();
    findings.extend(super::readable::secrets(config).iter().map(Finding::from));
    if offline {
        let what = format!("the configuration of scope {:?} is valid; no connection was made", config.scope);
        findings.push(Finding::ok(config, None, what));
    } else {
        online::findings(config, env, &mut findings).await;
    }
    findings
}
