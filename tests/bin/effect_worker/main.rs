//! A handler that writes down what it does: `effect-worker worker|exec LEDGER`.
//!
//! `worker` speaks the JSON lines of `[handler.worker]`, `exec` is one run for `[handler.exec]`. What a run does is in its
//! payload: see [`orders::Order`].

mod exec;
mod orders;
mod parent;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (mode, ledger) = (args.next(), args.next().map(PathBuf::from));
    match (mode.as_ref().and_then(|mode| mode.to_str()), ledger) {
        (Some("worker"), Some(ledger)) => worker::serve(&ledger),
        (Some("exec"), Some(ledger)) => exec::run_once(&ledger),
        _ => ExitCode::from(2),
    }
}
