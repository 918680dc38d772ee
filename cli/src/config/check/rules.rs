//! The checks that the program shares with plugins, with the configuration as the reporter.

use onceward_plugin::check::Reporter;
pub(super) use onceward_plugin::check::{address, duration, text, texts, url, within};
use onceward_plugin::value::HumanDuration;

use crate::config::document::Config;
use crate::config::remark::ConfigError;

/// The answer of a check.
pub(super) type Checked = Result<(), ConfigError>;

pub(super) const MILLISECOND: HumanDuration = HumanDuration::from_millis(1);
pub(super) const HOUR: HumanDuration = HumanDuration::from_secs(3_600);
pub(super) const DAY: HumanDuration = HumanDuration::from_secs(86_400);

/// An option is named by its whole path, such as `pipeline.concurrency`.
impl Reporter for Config {
    type Problem = ConfigError;

    fn report(&self, option: &str, problem: &str, fix: &str) -> ConfigError {
        self.refuse(option, problem, fix)
    }
}
