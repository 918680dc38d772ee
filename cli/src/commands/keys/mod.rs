//! `onceward keys`: shows and changes the keys in the store.

mod change;
mod complete;
mod explain;
mod import;
mod lines;
mod list;
mod naming;
mod purge;
mod show;

use onceward::Scope;

pub(super) use list::as_json as stats_as_json;
pub(super) use show::time;

use crate::args::KeysCommand;
use crate::config::{Config, Lookup};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::registry::{self, OpenStore, Purpose};
use crate::{args, logging};

/// A configuration and its open store.
struct KeysContext<'e> {
    config: Config,
    scope: Scope,
    store: OpenStore,
    env: Lookup<'e>,
}

impl<'e> KeysContext<'e> {
    async fn open(args: &args::FileArgs, env: Lookup<'e>) -> Result<Self, Failure> {
        let config = super::load(&args.file, env)?;
        logging::start(config.telemetry.log, env)?;
        let scope = registry::scope(&config).map_err(|error| super::failure(&error))?;
        let opened = registry::open_store(&config, Purpose::Operate).await;
        let store = opened.map_err(|error| super::failure(&error))?;
        Ok(Self { config, scope, store, env })
    }
}

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
