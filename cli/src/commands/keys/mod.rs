//! `onceward keys`: look at and change the keys in the store.

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

use crate::args::KeysCommand;
use crate::config::{Config, Lookup};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::registry::{self, OpenStore, Purpose};
use crate::{args, logging};

/// A configuration with its store open.
struct Bench<'e> {
    config: Config,
    scope: Scope,
    store: OpenStore,
    env: Lookup<'e>,
}

impl<'e> Bench<'e> {
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
    let bench = Bench::open(file, env).await?;
    let ended = match command {
        KeysCommand::Get(args) => show::get(&bench, args, out).await,
        KeysCommand::Explain(args) => explain::explain(&bench, args, out).await,
        KeysCommand::List(args) => list::list(&bench, args, out).await,
        KeysCommand::Stats(args) => list::stats(&bench, args, out).await,
        KeysCommand::Purge(args) => purge::purge(&bench, args, out).await,
        KeysCommand::Forget(args) => change::forget(&bench, args, out).await,
        KeysCommand::Complete(args) => change::complete(&bench, args, out).await,
        KeysCommand::Import(args) => import::import(&bench, args, out).await,
    };
    bench.store.close().await;
    ended
}
