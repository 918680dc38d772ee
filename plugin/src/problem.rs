//! Problems of a configuration, as a plugin reports them: [`Problem`], [`Exposure`] and [`Finding`].

use std::error::Error as StdError;
use std::fmt;

use onceward::Error;
use onceward::store::{Advice, AdviceLevel};

#[cfg(doc)]
use crate::FindingDoc;

/// A problem of a configuration: the key, what is wrong and what to do. It never holds a value, which may be a secret.
///
/// The program adds file and line, and prints `FILE:LINE: KEY: PROBLEM; FIX`.
///
/// ```
/// use onceward_plugin::Problem;
///
/// let problem = Problem::new("source.pigeon.loft", "is empty", "write its name");
/// assert_eq!(problem.to_string(), "source.pigeon.loft: is empty; write its name");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The dotted path of the key, such as `source.kafka.topics`.
    pub key: String,
    /// The problem, as the predicate of a sentence about the key: "is empty".
    pub problem: String,
    /// What to do about it.
    pub fix: String,
}

impl Problem {
    /// A problem of the key with this dotted path.
    pub fn new(key: impl Into<String>, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into(), fix: fix.into() }
    }

    /// The configuration runs in spite of it, but probably not as intended: a warning with this code.
    pub fn into_warning(self, code: &'static str) -> Finding {
        Finding::warning(code, self.key, self.problem, self.fix)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.key, self.problem, self.fix)
    }
}

/// The answer of a check.
pub type Checked = Result<(), Problem>;

/// A connection to another host on which a credential could be read, or another server could answer.
///
/// The program refuses it, unless the table has `allow_plaintext = true`; then it warns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exposure {
    /// The option to correct, within the plugin's table.
    pub option: &'static str,
    /// What is exposed, and to whom.
    pub problem: &'static str,
    /// How it is avoided.
    pub fix: &'static str,
    /// The table has `allow_plaintext = true`.
    pub is_allowed: bool,
}

/// One line of the report of `onceward check`.
///
/// A warning or an error has a code, which [`FindingDoc`] explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: AdviceLevel,
    /// The kind of warning or error; empty where all is well.
    pub code: &'static str,
    /// The dotted path of the key that it is about.
    pub key: String,
    /// The finding.
    pub message: String,
    /// What to do about it, where the message does not state it.
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level: AdviceLevel::Ok, code: "", key: key.into(), message: message.into(), fix: None }
    }

    /// It works, but probably not as intended.
    pub fn warning(
        code: &'static str,
        key: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { fix: Some(fix.into()), code, level: AdviceLevel::Warning, ..Self::ok(key, message) }
    }

    /// It does not work.
    pub fn error(
        code: &'static str,
        key: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { level: AdviceLevel::Error, ..Self::warning(code, key, message, fix) }
    }

    /// An error of an adapter about `key`; its text says what to do, and its kind is the code.
    pub fn failed(key: impl Into<String>, error: &Error) -> Self {
        let code = crate::finding_doc::code_of(error.kind());
        Self { level: AdviceLevel::Error, code, ..Self::ok(key, sentence(error)) }
    }

    /// Advice of an adapter about `key`; its text names the fix.
    pub fn advised(key: impl Into<String>, advice: Advice) -> Self {
        Self { level: advice.level, code: advice.code, ..Self::ok(key, advice.text) }
    }
}

/// The error and its causes, on one line.
pub fn sentence(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        // Some libraries include the cause in their text; it is not repeated.
        if !text.ends_with(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}
