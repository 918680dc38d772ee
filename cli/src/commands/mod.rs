//! The commands of the program, one module each.

mod check;
mod completions;
mod config;
mod dlq;
mod init;
mod keys;
mod migrate;
mod outbox;
mod readable;
mod run;
mod schema;
mod status;

use std::path::Path;

use onceward::{Error, ErrorKind};

use crate::args::{Command, ConfigCommand};
use crate::config::{Config, ConfigError, Lookup, missing_telemetry};
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Runs one command to its end.
///
/// # Errors
/// The exit code and one sentence.
pub async fn dispatch(command: Command, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let ended = match command {
        Command::Check(args) => check::check(&args, env, out).await,
        Command::Config(ConfigCommand::Show(args)) => config::show(&args.file, env, out),
        Command::Schema => schema::schema(out),
        Command::Init(args) => init::init(args.file.as_deref(), out),
        Command::Completions { shell } => completions::completions(shell, out),
        Command::Run(args) => run::run(&args, env, out).await,
        Command::Migrate(args) => migrate::migrate(&args.file, env, out).await,
        Command::Keys(command) => keys::keys(&command, env, out).await,
        Command::Dlq(command) => dlq::dlq(&command, env, out).await,
        Command::Outbox(command) => outbox::outbox(&command, env, out).await,
        Command::Status(args) => status::status(&args, env, out).await,
    };
    crate::logging::finish();
    ended
}

/// A configuration that this build has all the parts for.
fn load(file: &Path, env: Lookup<'_>) -> Result<Config, Failure> {
    Ok(load_with(file, env)?)
}

/// As [`load`], for those who look at the error themselves.
fn load_with(file: &Path, env: Lookup<'_>) -> Result<Config, ConfigError> {
    let config = Config::load(file, env)?;
    missing_telemetry(&config).map_or(Ok(config), Err)
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
        let next_text = next.to_string();
        // Some libraries print their cause themselves; it is not said twice.
        if !text.ends_with(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}
