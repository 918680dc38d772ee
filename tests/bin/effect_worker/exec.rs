//! One run with the payload on standard input and the rest in variables.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use crate::orders::{self, Ended, Told};

const EX_DATAERR: u8 = 65;
const EX_TEMPFAIL: u8 = 75;

#[allow(clippy::print_stderr)]
pub(crate) fn run_once(ledger: &Path) -> ExitCode {
    let mut payload = Vec::new();
    if let Err(error) = std::io::stdin().read_to_end(&mut payload) {
        eprintln!("effect-worker cannot read its payload: {error}");
        return ExitCode::from(EX_DATAERR);
    }
    let told = Told {
        key: variable("ONCEWARD_KEY").unwrap_or_default(),
        fence: variable("ONCEWARD_FENCE").unwrap_or_default(),
        attempt: variable("ONCEWARD_ATTEMPT").unwrap_or_default(),
    };
    match orders::run(ledger, &payload, told) {
        Ended::Well => ExitCode::SUCCESS,
        Ended::Failed => {
            eprintln!("told to fail");
            ExitCode::from(EX_TEMPFAIL)
        }
        Ended::FailedForGood => {
            eprintln!("told to fail for good");
            ExitCode::from(EX_DATAERR)
        }
        Ended::WithoutAnswer => ExitCode::from(9),
    }
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}
