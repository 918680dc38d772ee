//! The one form every remark about a configuration takes: `file:line: key: what is wrong; what to do`.

use std::fmt;
use std::path::{Path, PathBuf};

/// The code of everything for which a configuration is refused.
const INVALID: &str = "invalid-configuration";

/// One remark about a configuration file. It never holds a value or a line of the file, which may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    pub(super) file: Option<PathBuf>,
    pub(super) line: Option<usize>,
    pub(super) key: Option<String>,
    pub(super) code: &'static str,
    // Boxed, since an error is returned by value.
    pub(super) problem: Box<str>,
    pub(super) fix: Box<str>,
}

impl Remark {
    pub(super) fn new(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            file: None,
            line: None,
            key: None,
            code: INVALID,
            problem: problem.into().into_boxed_str(),
            fix: fix.into().into_boxed_str(),
        }
    }

    pub(super) fn line(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    pub(super) fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub(super) fn code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    pub(super) fn file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_owned());
        self
    }
}

/// Prints `file:line: key: problem; fix`, leaving out what is not known.
impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        write!(f, "{}; {}", self.problem, self.fix)
    }
}

macro_rules! remark_type {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name(pub(super) Remark);

        impl $name {
            /// The file, as it was named by the caller; none for text that came from elsewhere.
            pub fn file(&self) -> Option<&Path> {
                self.0.file.as_deref()
            }

            /// The line, counted from 1; that of the nearest enclosing table when the key is not written.
            pub fn line(&self) -> Option<usize> {
                self.0.line
            }

            /// The dotted path of the key, such as `pipeline.concurrency`.
            pub fn key(&self) -> Option<&str> {
                self.0.key.as_deref()
            }

            /// The code, which the reference page `findings.md` explains.
            pub fn code(&self) -> &'static str {
                self.0.code
            }

            /// The problem.
            pub fn problem(&self) -> &str {
                &self.0.problem
            }

            /// What to do about it.
            pub fn fix(&self) -> &str {
                &self.0.fix
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

remark_type! {
    /// Why a configuration is refused, in one sentence that names the line, the key and the fix.
    ///
    /// It never prints the value found or the source line: either may be a password.
    ConfigError
}

impl std::error::Error for ConfigError {}

remark_type! {
    /// Advice about a configuration that is accepted: it will run, but probably not as intended.
    Advice
}
