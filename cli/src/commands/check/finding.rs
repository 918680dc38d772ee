//! A finding of `onceward check`, one line of its report: [`Finding`].

use std::fmt;

use onceward::Error;
use onceward::store::{Advice as StoreAdvice, AdviceLevel};
use serde::Serialize;

use crate::config::{Advice, Config, ConfigError};
use crate::handlers::text::printable;

/// The longest line of a report, in bytes.
const LINE_LIMIT: usize = 8 * 1024;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    Ok,
    Warning,
    Error,
}

/// One line of the report.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    #[serde(skip)]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

macro_rules! from_remark {
    ($remark:ident, $severity:ident) => {
        impl From<&$remark> for Finding {
            fn from(remark: &$remark) -> Self {
                Self {
                    severity: Severity::$severity,
                    file: remark.file().map(|file| file.display().to_string()),
                    line: remark.line(),
                    key: remark.key().map(str::to_owned),
                    message: remark.problem().to_owned(),
                    fix: Some(remark.fix().to_owned()),
                }
            }
        }
    };
}

from_remark!(Advice, Warning);
from_remark!(ConfigError, Error);

impl Finding {
    /// A remark about a configuration that runs anyway.
    pub(super) fn warned(remark: &ConfigError) -> Self {
        Self { severity: Severity::Warning, ..Self::from(remark) }
    }

    /// Nothing is wrong with `key`, or with the whole configuration.
    pub(super) fn ok(config: &Config, key: Option<&str>, message: impl Into<String>) -> Self {
        let here = Self::from(&config.refuse(key.unwrap_or_default(), message, ""));
        let line = here.line.filter(|_| key.is_some());
        Self { severity: Severity::Ok, key: key.map(str::to_owned), line, fix: None, ..here }
    }

    /// The configuration runs, but probably not as intended.
    pub(super) fn warning(
        config: &Config,
        key: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Warning, ..Self::error(config, key, message, fix) }
    }

    /// The configuration does not run.
    pub(super) fn error(
        config: &Config,
        key: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::from(&config.refuse(key, message, fix))
    }

    /// The error of an adapter about `key`, which names the fix.
    pub(super) fn failed(config: &Config, key: &str, error: &Error) -> Self {
        Self { fix: None, ..Self::error(config, key, crate::commands::failure::sentence(error), "") }
    }

    /// The finding of a plugin.
    pub(super) fn plugin(config: &Config, found: onceward_plugin::Finding) -> Self {
        let severity = severity(found.level);
        let fix = found.fix.filter(|_| severity != Severity::Ok);
        Self { severity, fix, ..Self::error(config, &found.key, found.message, "") }
    }

    /// The advice of a store about itself.
    pub(super) fn advised(config: &Config, key: &str, advice: &StoreAdvice) -> Self {
        let severity = severity(advice.level);
        Self { severity, fix: None, ..Self::error(config, key, advice.text.as_str(), "") }
    }
}

fn severity(level: AdviceLevel) -> Severity {
    match level {
        AdviceLevel::Ok => Severity::Ok,
        AdviceLevel::Warning => Severity::Warning,
        AdviceLevel::Error => Severity::Error,
    }
}

/// `severity: file:line: key: message; fix`, without the unknown parts.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = match self.severity {
            Severity::Ok => "ok: ",
            Severity::Warning => "warning: ",
            Severity::Error => "error: ",
        }
        .to_owned();
        match (&self.file, self.line) {
            (Some(file), Some(line)) => text += &format!("{file}:{line}: "),
            (Some(file), None) => text += &format!("{file}: "),
            (None, Some(line)) => text += &format!("line {line}: "),
            (None, None) => {}
        }
        if let Some(key) = &self.key {
            text += &format!("{key}: ");
        }
        text += &self.message;
        if let Some(fix) = &self.fix {
            text += &format!("; {fix}");
        }
        f.write_str(&printable(text.as_bytes(), LINE_LIMIT))
    }
}
