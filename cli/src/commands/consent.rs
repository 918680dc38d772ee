//! Asks for confirmation before something is changed: [`consent`].

use std::io::{self, BufRead, IsTerminal, Write};

use crate::exit::{Exit, Failure};

/// Asks for confirmation on a terminal; elsewhere `--yes` is required. `what` is done without it: "change the key".
///
/// # Errors
/// There is no terminal, or the answer is not yes.
pub(super) fn consent(yes: bool, question: &str, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let sentence = format!("there is no terminal for the confirmation; give --yes to {what} without it");
        return Err(Failure::new(Exit::Usage, sentence));
    }
    // A terminal that cannot be written to gives no answer.
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "nothing was changed")),
    }
}
