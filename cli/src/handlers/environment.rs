//! Which variables of this program's own environment a handler's process gets: [`Environment`].

use std::collections::BTreeSet;
use std::ffi::OsString;

use super::variables::is_of_a_message;

/// What a process needs to find programs, files and its language. No secret has its place there.
const USUAL: [&str; 8] = ["HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"];

/// And those of the locale: `LC_ALL`, `LC_TIME`, …
const USUAL_START: &str = "LC_";

/// What stands for all other variables.
pub(crate) const EVERYTHING: &str = "*";

/// The environment of a handler's processes: `PATH`, `HOME`, the user's name, the locale, the time zone and the directory for
/// temporary files, and what is named. This program's environment often holds the passwords of its configuration, which a
/// handler has no use for.
///
/// `Debug` shows names, and no value.
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

    /// Passes these variables on as well, where they are set; `*` stands for all but those [withheld](Self::withhold).
    #[must_use]
    pub fn inherit(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.inherited.extend(names);
        self
    }

    /// Withholds these variables unless they are inherited by their own names, even from `*` and the locale's `LC_…`.
    #[must_use]
    pub fn withhold(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.withheld.extend(names);
        self
    }

    /// Sets variables, whatever is inherited.
    #[must_use]
    pub fn set(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.set.extend(variables);
        self
    }

    /// All variables of a process, of those that this program has.
    pub(super) fn of(&self, own: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
        let passed = own.filter(|(name, _)| name.to_str().is_some_and(|name| self.passes(name)));
        let set = self.set.iter().map(|(name, value)| (name.into(), value.into()));
        passed.chain(set).collect()
    }

    /// The `PATH` that is set for a process, in the place of this program's.
    pub(super) fn path(&self) -> Option<&str> {
        self.set.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str())
    }

    fn passes(&self, name: &str) -> bool {
        if is_of_a_message(name) {
            return false;
        }
        let by_name = USUAL.contains(&name) || self.inherited.contains(name);
        let by_kind = name.starts_with(USUAL_START) || self.inherited.contains(EVERYTHING);
        by_name || (by_kind && !self.withheld.contains(name))
    }
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
        environment.of(own).into_iter().map(|(name, _)| name.into_string().unwrap()).collect()
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
        // What could be taken for a message's own is never passed.
        let all = used().inherit(names(&["*", "ONCEWARD_KEY"]));
        assert_eq!(passed(&all), ["PATH", "HOME", "LC_ALL", "LD_PRELOAD", "PYTHONPATH", "ONCEWARD_LOG"]);
    }

    #[test]
    fn what_is_set_wins_and_no_value_is_shown() {
        let environment = Environment::new().set([("PATH".to_owned(), "hunter2".to_owned())]);
        let own = [("PATH".into(), "/bin".into())];
        assert_eq!(environment.of(own.into_iter()).last(), Some(&("PATH".into(), "hunter2".into())));
        assert!(!format!("{environment:?}").contains("hunter2"));
    }
}
