//! `onceward check`: what is wrong with a configuration, and what is unwise.

use serde::Serialize;

use crate::args::CheckArgs;
use crate::config::{Advice, Config, ConfigError, Lookup, missing_feature};
use crate::exit::{Exit, Failure};
use crate::output::{Output, OutputError};

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Ok,
    Warning,
    Error,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Finding<'a> {
    severity: Severity,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<&'a str>,
}

impl<'a> From<&'a Advice> for Finding<'a> {
    fn from(advice: &'a Advice) -> Self {
        Self {
            severity: Severity::Warning,
            line: advice.line(),
            key: advice.key(),
            message: advice.problem().to_owned(),
            fix: Some(advice.fix()),
        }
    }
}

impl<'a> From<&'a ConfigError> for Finding<'a> {
    fn from(error: &'a ConfigError) -> Self {
        Self {
            severity: Severity::Error,
            line: error.line(),
            key: error.key(),
            message: error.problem().to_owned(),
            fix: Some(error.fix()),
        }
    }
}

/// Reports on the configuration, one line each, or one JSON object each with `--json`.
pub(super) fn check(args: &CheckArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let file = &args.report.config.file;
    let config =
        match Config::load(file, env).and_then(|config| missing_feature(&config).map_or(Ok(config), Err)) {
            Ok(config) => config,
            Err(error) if args.report.json => {
                out.json(&Finding::from(&error))?;
                return Err(Failure::silent(Exit::Config));
            }
            Err(error) => return Err(error.into()),
        };
    report(&config, args.report.json, out)?;
    if !args.offline {
        return Err(super::not_wired("check without --offline"));
    }
    let message = format!("the configuration of scope {:?} is valid; nothing was connected to", config.scope);
    if args.report.json {
        out.json(&Finding { severity: Severity::Ok, line: None, key: None, message, fix: None })?;
    } else {
        out.line(format_args!("ok: {}: {message}", file.display()))?;
    }
    Ok(Exit::Done)
}

fn report(config: &Config, json: bool, out: &mut Output) -> Result<(), OutputError> {
    config.advice().iter().try_for_each(|advice| {
        if json { out.json(&Finding::from(advice)) } else { out.line(format_args!("warning: {advice}")) }
    })
}
