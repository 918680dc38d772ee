//! `onceward keys`: shows and changes the keys in the store.

mod change;
mod complete;
mod context;
mod explain;
mod history;
mod import;
mod lines;
mod list;
mod naming;
mod purge;
mod show;

pub(super) use list::as_json as stats_as_json;
pub(super) use show::time;

use crate::args::KeysCommand;
use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::output::Output;

use context::KeysContext;

/// Runs one of the commands.
pub(super) async fn keys(command: &KeysCommand, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let file = match command {
        KeysCommand::Get(args) | KeysCommand::Explain(args) => &args.report.config,
        KeysCommand::List(args) => &args.report.config,
        KeysCommand::Stats(args) | KeysCommand::Purge(args) => &args.config,
        KeysCommand::Forget(args) | KeysCommand::Complete(args) => &args.key.report.config,
        KeysCommand::Import(args) => &args.report.config,
    };
    let context = KeysContext::open(file, env).await?;
    let ended = match command {
        KeysCommand::Get(args) => show::get(&context, args, out).await,
        KeysCommand::Explain(args) => explain::explain(&context, args, out).await,
        KeysCommand::List(args) => list::list(&context, args, out).await,
        KeysCommand::Stats(args) => list::stats(&context, args, out).await,
        KeysCommand::Purge(args) => purge::purge(&context, args, out).await,
        KeysCommand::Forget(args) => change::forget(&context, args, out).await,
        KeysCommand::Complete(args) => change::complete(&context, args, out).await,
        KeysCommand::Import(args) => import::import(&context, args, out).await,
    };
    context.store.close().await;
    ended
}
