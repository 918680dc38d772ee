//! Exit codes of the program, which scripts rely on, and the error message of a failure.

use std::process::ExitCode;

use crate::config::ConfigError;
use crate::output::OutputError;

/// The program's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or drained after a signal.
    Done = 0,
    /// A check or a run failed.
    Failed = 1,
    /// The command line is invalid.
    Usage = 2,
    /// A finite run finished, with dead letters or with messages that a policy left in the source.
    DeadLetters = 3,
    /// The configuration is invalid (`EX_CONFIG`).
    Config = 78,
    /// The drain deadline passed with handlers still running.
    DrainDeadline = 124,
    /// A second signal, SIGHUP, aborted the drain.
    HungUp = 129,
    /// A second SIGINT aborted the drain.
    Interrupted = 130,
    /// A second SIGTERM aborted the drain.
    Terminated = 143,
}

impl Exit {
    /// The exit code as a number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The failure of a command: its exit code, and an error message unless everything has been printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    sentence: Option<String>,
}

impl Failure {
    /// A failure with this exit code; `sentence` names the problem and the fix.
    pub fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self { exit, sentence: Some(sentence.into()) }
    }

    /// A failure with this exit code and without a message: everything has been printed.
    pub fn silent(exit: Exit) -> Self {
        Self { exit, sentence: None }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The message for standard error.
    pub fn sentence(&self) -> Option<&str> {
        self.sentence.as_deref()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Config, error.to_string())
    }
}

/// A reader that closes the pipe has seen enough, which is not a failure.
impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Closed => Self::silent(Exit::Done),
            OutputError::Failed(_) => Self::new(Exit::Failed, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_silent_and_a_full_disk_is_not() {
        assert_eq!(Failure::from(OutputError::Closed), Failure::silent(Exit::Done));
        let full = Failure::from(OutputError::Failed(std::io::ErrorKind::StorageFull.into()));
        assert_eq!((full.exit(), full.sentence().is_some()), (Exit::Failed, true));
    }
}
