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
    /// None where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    /// The address of the code's explanation.
    #[serde(skip_serializing_if = "Option::is_none")]
    documentation: Option<String>,
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
                    code: Some(remark.code()),
                    documentation: Some(documentation(remark.code())),
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
    /// Nothing is wrong with `key`, or with the whole configuration.
    pub(super) fn ok(config: &Config, key: Option<&str>, message: impl Into<String>) -> Self {
        let here = Self::from(&config.refuse(key.unwrap_or_default(), message, ""));
        let line = here.line.filter(|_| key.is_some());
        Self { key: key.map(str::to_owned), line, ..here }.with(Severity::Ok, "", None)
    }

    /// The configuration runs, but probably not as intended.
    pub(super) fn warning(
        config: &Config,
        code: &'static str,
        key: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::from(&config.warn(code, key, message, fix))
    }

    /// The error of an adapter about `key`, which names the fix.
    pub(super) fn failed(config: &Config, key: &str, error: &Error) -> Self {
        Self::plugin(config, onceward_plugin::Finding::failed(key, error))
    }

    /// The finding of a plugin.
    pub(super) fn plugin(config: &Config, found: onceward_plugin::Finding) -> Self {
        let here = Self::from(&config.refuse(&found.key, found.message, ""));
        here.with(severity(found.level), found.code, found.fix)
    }

    /// The advice of a store about itself.
    pub(super) fn advised(config: &Config, key: &str, advice: StoreAdvice) -> Self {
        Self::plugin(config, onceward_plugin::Finding::advised(key, advice))
    }

    fn with(self, severity: Severity, code: &'static str, fix: Option<String>) -> Self {
        let is_ok = severity == Severity::Ok;
        let code = (!is_ok && !code.is_empty()).then_some(code);
        Self { severity, code, documentation: code.map(documentation), fix: fix.filter(|_| !is_ok), ..self }
    }
}

/// The address of a code's explanation.
fn documentation(code: &str) -> String {
    format!(
        "{}/blob/v{}/docs/reference/findings.md#{code}",
        env!("CARGO_PKG_REPOSITORY"),
        env!("CARGO_PKG_VERSION")
    )
}

fn severity(level: AdviceLevel) -> Severity {
    match level {
        AdviceLevel::Ok => Severity::Ok,
        AdviceLevel::Warning => Severity::Warning,
        AdviceLevel::Error => Severity::Error,
    }
}

/// `severity: file:line: key: message; fix [code]`, without the unknown parts.
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
        if let Some(code) = self.code {
            text += &format!(" [{code}]");
        }
        f.write_str(&printable(text.as_bytes(), LINE_LIMIT))
    }
}
