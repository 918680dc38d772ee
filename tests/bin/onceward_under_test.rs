//! The `onceward` program, built with crash points: what the whole-system tests run and kill.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    onceward_cli::main()
}
