//! `onceward dlq`: shows dead letters, moves them back to their source, and deletes them.
//!
//! ```text
//! context: store, audit trail, both ends ─▶ reader ─▶ letter ─▶ filter ─┬─▶ list, show
//!                                                                       ├─▶ redrive: audit ─▶ key ─▶ republish ─▶ audit ─▶ delete
//!                                                                       └─▶ purge: audit ─▶ delete
//! ```

mod audit;
mod context;
mod depth;
mod desk;
mod filter;
mod letter;
mod list;
mod log;
mod purge;
mod reader;
mod redrive;
mod republish;
mod show;

pub(super) use depth::{LetterCount, LettersFound, letters};
pub(super) use desk::LetterDesk;

use crate::args::DlqCommand;
use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::output::Output;

pub(super) async fn dlq(command: &DlqCommand, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    match command {
        DlqCommand::List(args) => list::list(args, env, out).await,
        DlqCommand::Show(args) => show::show(args, env, out).await,
        DlqCommand::Redrive(args) => redrive::redrive(args, env, out).await,
        DlqCommand::Purge(args) => purge::purge(args, env, out).await,
        DlqCommand::Log(args) => log::log(args, env, out).await,
    }
}
