//! The `onceward` program. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    onceward_cli::main()
}
