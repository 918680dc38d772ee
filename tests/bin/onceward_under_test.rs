//! The `onceward` program, built with crash points: what the whole-system tests run and kill.

use std::process::ExitCode;

fn main() -> ExitCode {
    onceward_cli::main()
}
