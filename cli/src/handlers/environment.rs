//! Environment variables that handler processes inherit: [`Environment`].

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use super::variables::is_message_variable;
use crate::telemetry::{HEADERS, URLS};

/// Variables that are always inherited: a process needs them to find programs, files and its language. None holds a secret.
const USUAL: [&str; 8] = ["HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"];

/// The prefix of the variables of the locale: `LC_ALL`, `LC_TIME`, …
const USUAL_START: &str = "LC_";

/// The name that means all other variables.
pub(crate) const EVERYTHING: &str = "*";

/// The environment of handler processes: `PATH`, `HOME`, the user name, the locale, the time zone, the temporary directory,
/// and variables listed by name. The environment of this program often contains passwords of its configuration, which
/// handlers do not need.
///
/// `Debug` shows names only.
#[derive(Clone, Default)]
pub struct Environment {
    inherited: BTreeSet<String>,
    withheld: BTreeSet<String>,
    set: Vec<(String, String)>,
}

impl Environment {
    /// The usual variables only.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also inherits these variables if they are set; `*` means all except those that are [withheld](Self::withhold).
    #[must_use]
    pub fn inherit(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.inherited.extend(names);
        self
    }

    /// Withholds these variables, even from `*` and `LC_…`, unless they are inherited by name. So are the logins of this
    /// program's own traces.
    #[must_use]
    pub fn withhold(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.withheld.extend(names);
        self
    }

    /// Sets variables, which take precedence over inherited ones.
    #[must_use]
    pub fn set(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.set.extend(variables);
        self
    }

    /// The variables of a process, given those of this program.
    pub(super) fn variables(
        &self,
        own: impl Iterator<Item = (OsString, OsString)>,
    ) -> Vec<(OsString, OsString)> {
        let passed = own.filter(|(name, value)| name.to_str().is_some_and(|name| self.passes(name, value)));
        let set = self.set.iter().map(|(name, value)| (name.into(), value.into()));
        passed.chain(set).collect()
    }

    /// The `PATH` that is set for a process instead of that of this program.
    pub(super) fn path(&self) -> Option<&str> {
        self.set.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str())
    }

    fn passes(&self, name: &str, value: &OsStr) -> bool {
        if is_message_variable(name) {
            return false;
        }
        let by_name = USUAL.contains(&name) || self.inherited.contains(name);
        let by_kind = name.starts_with(USUAL_START) || self.inherited.contains(EVERYTHING);
        by_name || (by_kind && !self.withheld.contains(name) && !holds_trace_login(name, value))
    }
}

fn holds_trace_login(name: &str, value: &OsStr) -> bool {
    HEADERS.contains(&name) || (URLS.contains(&name) && value.as_encoded_bytes().contains(&b'@'))
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set: Vec<_> = self.set.iter().map(|(name, _)| name).collect();
        f.debug_struct("Environment")
            .field("inherited", &self.inherited)
            .field("set", &set)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [&str; 9] = [
        "PATH",
        "HOME",
        "LC_ALL",
        "LC_SECRET",
        "DB_PASSWORD",
        "LD_PRELOAD",
        "PYTHONPATH",
        "ONCEWARD_KEY",
        "ONCEWARD_LOG",
    ];

    fn passed(environment: &Environment) -> Vec<String> {
        let own = OWN.iter().map(|name| ((*name).into(), "value".into()));
        environment.variables(own).into_iter().map(|(name, _)| name.into_string().unwrap()).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_process_gets_what_it_needs_and_what_is_named() {
        assert_eq!(passed(&Environment::new()), ["PATH", "HOME", "LC_ALL", "LC_SECRET"]);
        let used = || Environment::new().withhold(names(&["DB_PASSWORD", "LC_SECRET"]));
        assert_eq!(passed(&used()), ["PATH", "HOME", "LC_ALL"]);
        let named = used().inherit(names(&["PYTHONPATH", "DB_PASSWORD", "NOT_SET"]));
        assert_eq!(passed(&named), ["PATH", "HOME", "LC_ALL", "DB_PASSWORD", "PYTHONPATH"]);
        // Variables that look like those of a message are never inherited.
        let all = used().inherit(names(&["*", "ONCEWARD_KEY"]));
        assert_eq!(passed(&all), ["PATH", "HOME", "LC_ALL", "LD_PRELOAD", "PYTHONPATH", "ONCEWARD_LOG"]);
    }

    #[test]
    fn the_logins_of_traces_are_inherited_by_name_only() {
        let passed = |inherited: &[&str], url: &str| {
            let own = [("OTEL_EXPORTER_OTLP_HEADERS", "a=b"), ("OTEL_EXPORTER_OTLP_ENDPOINT", url)];
            let own = own.iter().map(|(name, value)| (name.into(), value.into()));
            Environment::new().inherit(names(inherited)).variables(own).len()
        };
        assert_eq!((passed(&["*"], "http://h"), passed(&["*"], "http://u:p@h")), (1, 0));
        assert_eq!(passed(&HEADERS, "http://u:p@h"), 1);
    }

    #[test]
    fn what_is_set_wins_and_no_value_is_shown() {
        let environment = Environment::new().set([("PATH".to_owned(), "hunter2".to_owned())]);
        let own = [("PATH".into(), "/bin".into())];
        assert_eq!(environment.variables(own.into_iter()).last(), Some(&("PATH".into(), "hunter2".into())));
        assert!(!format!("{environment:?}").contains("hunter2"));
    }
}
