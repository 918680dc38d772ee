//! How the program ends: its exit codes, a contract that scripts rely on, and the one sentence that goes with a failure.

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
    /// The command line is wrong.
    Usage = 2,
    /// A run over a file finished, with dead letters or with messages that a policy keeps in the file.
    DeadLetters = 3,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
    /// The drain deadline passed with handlers still running.
    DrainDeadline = 124,
    /// A second signal, SIGHUP, ended the drain.
    HungUp = 129,
    /// A second SIGINT ended the drain.
    Interrupted = 130,
    /// A second SIGTERM ended the drain.
    Terminated = 143,
}

impl Exit {
    /// The number the shell sees.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command ended early: the exit code, and one sentence unless all has been said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    sentence: Option<String>,
}

impl Failure {
    /// Ends with this code after printing the sentence, which says what was wrong and what to do.
    pub fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self { exit, sentence: Some(sentence.into()) }
    }

    /// Ends with this code and prints nothing: what there was to say has been printed.
    pub fn silent(exit: Exit) -> Self {
        Self { exit, sentence: None }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// What to print on standard error.
    pub fn sentence(&self) -> Option<&str> {
        self.sentence.as_deref()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Config, error.to_string())
    }
}

/// Whoever closed the pipe has seen enough: that is no failure.
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
