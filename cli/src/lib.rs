//! The `onceward` program as a library: deduplication in front of a handler in any language.

pub mod args;
pub mod commands;
pub mod config;
pub mod exit;
pub mod handlers;
mod logging;
pub mod output;
mod plugins;
mod registry;
mod signals;
mod telemetry;

use std::process::ExitCode;
use std::time::Duration;

use args::CommandLine;
use exit::{Exit, Failure};
use output::{Output, complain};

/// The whole program: reads the command line and the environment, runs the command, and reports how it ended.
pub fn main() -> ExitCode {
    let command_line = match CommandLine::parse_from_args(std::env::args_os()) {
        Ok(command_line) => command_line,
        Err(told) => {
            // Help and version come as errors too. A closed pipe is no reason to fail.
            let _ = told.print();
            return if told.exit_code() == 0 { Exit::Done } else { Exit::Usage }.into();
        }
    };
    match run(command_line) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if let Some(sentence) = failure.sentence() {
                complain(sentence);
            }
            failure.exit().into()
        }
    }
}

fn run(command_line: CommandLine) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Failure::new(Exit::Failed, format!("threads cannot be started ({error}); raise the process's limits"))
    })?;
    let env = |name: &str| std::env::var(name).ok();
    prepare(&env)?;
    let ended = runtime.block_on(commands::dispatch(command_line.command, &env, &mut Output::stdout()));
    // A read of standard input cannot be interrupted; waiting for it would keep a drained program alive. Runs that were
    // cut short are dropped, which kills their processes: that is waited for.
    let cut_short = matches!(
        ended,
        Ok(Exit::DrainDeadline | Exit::HungUp | Exit::Interrupted | Exit::Terminated) | Err(_)
    );
    runtime.shutdown_timeout(if cut_short { LAST_WORDS } else { Duration::ZERO });
    ended
}

/// How long the tasks have to be dropped when the program must end at once.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// The setup for the whole process, before anything else.
fn prepare(env: config::Lookup<'_>) -> Result<(), Failure> {
    #[cfg(feature = "http")]
    handlers::install_tls_provider();
    #[cfg(feature = "failpoints")]
    if let Some(plan) = env("ONCEWARD_FAILPOINTS") {
        onceward::failpoints::arm(&plan)
            .map_err(|what| Failure::new(Exit::Usage, format!("ONCEWARD_FAILPOINTS: {what}")))?;
    }
    let _ = env;
    Ok(())
}
