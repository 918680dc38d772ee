//! Commands of the program, one module each.

mod audit;
mod bench;
mod check;
mod completions;
mod config;
mod consent;
mod dlq;
mod failure;
mod init;
mod keys;
mod migrate;
mod observe;
mod outbox;
mod progress;
mod readable;
mod run;
mod schema;
mod status;
#[cfg(feature = "telemetry")]
mod top;

use crate::args::{Command, ConfigCommand};
use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Runs one command.
///
/// # Errors
/// The exit code and the error message.
pub async fn dispatch(command: Command, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let ended = match command {
        Command::Check(args) => check::check(&args, env, out).await,
        Command::Config(ConfigCommand::Show(args)) => config::show(&args.file, env, out),
        Command::Schema => schema::schema(out),
        Command::Init(args) => init::init(args.file.as_deref(), out),
        Command::Completions { shell } => completions::completions(shell, out),
        Command::Run(args) => run::run(&args, env, out).await,
        Command::Observe(args) => observe::observe(&args, env, out).await,
        Command::Migrate(args) => migrate::migrate(&args.file, env, out).await,
        Command::Keys(command) => keys::keys(&command, env, out).await,
        Command::Dlq(command) => dlq::dlq(&command, env, out).await,
        Command::Outbox(command) => outbox::outbox(&command, env, out).await,
        Command::Bench(args) => bench::bench(&args, env, out).await,
        Command::Status(args) => status::status(&args, env, out).await,
        #[cfg(feature = "telemetry")]
        Command::Top(args) => top::top(&args, env, out).await,
    };
    let at_once =
        matches!(ended, Ok(Exit::DrainDeadline | Exit::HungUp | Exit::Interrupted | Exit::Terminated));
    crate::telemetry::finish(at_once).await;
    crate::logging::finish();
    ended
}
