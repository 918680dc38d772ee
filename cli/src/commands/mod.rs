//! The commands of the program, one module each.

mod check;
mod completions;
mod config;
mod init;
mod run;
mod schema;

use std::path::Path;

use onceward::{Error, ErrorKind};

use crate::args::{Command, ConfigCommand};
use crate::config::{Config, Lookup, missing_feature};
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Runs one command to its end.
///
/// # Errors
/// The exit code and one sentence.
pub async fn dispatch(command: Command, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    match command {
        Command::Check(args) => check::check(&args, env, out),
        Command::Config(ConfigCommand::Show(args)) => config::show(&args.file, env, out),
        Command::Schema => schema::schema(out),
        Command::Init(args) => init::init(args.file.as_deref(), out),
        Command::Completions { shell } => completions::completions(shell, out),
        Command::Run(args) => run::run(&args, env, out).await,
        Command::Migrate(_) => Err(not_wired("migrate")),
        Command::Keys(_) => Err(not_wired("keys")),
        Command::Status(_) => Err(not_wired("status")),
    }
}

/// A configuration that this build has all the parts for.
fn load(file: &Path, env: Lookup<'_>) -> Result<Config, Failure> {
    let config = Config::load(file, env)?;
    match missing_feature(&config) {
        Some(error) => Err(error.into()),
        None => Ok(config),
    }
}

/// How a command ends that `error` ended: what is wrong with the set-up is the configuration's, all else is not.
fn failure(error: &Error) -> Failure {
    let exit = match error.kind() {
        ErrorKind::Config => Exit::Config,
        _ => Exit::Failed,
    };
    Failure::new(exit, sentence(error))
}

/// The error and its causes, on one line.
fn sentence(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// Only until the command's module is here.
fn not_wired(command: &str) -> Failure {
    Failure::new(Exit::Failed, format!("onceward {command} is not wired yet; use a later build"))
}
