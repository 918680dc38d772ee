//! Rules that many options share.

use std::fmt::Debug;
use std::ops::RangeInclusive;

use onceward_plugin::value::{Address, HumanDuration};

use crate::config::document::Config;
use crate::config::remark::ConfigError;

/// The answer of a check.
pub(super) type Checked = Result<(), ConfigError>;

pub(super) const MILLISECOND: HumanDuration = HumanDuration::from_millis(1);
pub(super) const HOUR: HumanDuration = HumanDuration::from_secs(3_600);
pub(super) const DAY: HumanDuration = HumanDuration::from_secs(86_400);

pub(super) fn text(config: &Config, key: &str, text: &str) -> Checked {
    if text.trim().is_empty() { Err(config.refuse(key, "is empty", "write its name")) } else { Ok(()) }
}

pub(super) fn address(config: &Config, key: &str, address: &Address) -> Checked {
    if address.is_empty() { Err(config.refuse(key, "is empty", "write where it is")) } else { Ok(()) }
}

pub(super) fn texts<T>(config: &Config, key: &str, texts: &[T], is_empty: impl Fn(&T) -> bool) -> Checked {
    if texts.is_empty() {
        return Err(config.refuse(key, "is an empty list", "write at least one"));
    }
    match texts.iter().position(is_empty) {
        Some(index) => {
            Err(config.refuse(&format!("{key}[{index}]"), "is empty", "write its name or leave it out"))
        }
        None => Ok(()),
    }
}

pub(super) fn url(config: &Config, key: &str, address: &Address, schemes: &[&str]) -> Checked {
    if address.has_scheme(schemes) {
        return Ok(());
    }
    let schemes: Vec<_> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
    let fix = format!(
        "write one that starts with {}, with `@`, `/`, `:`, `?` and `#` in a password percent-encoded",
        schemes.join(" or ")
    );
    Err(config.refuse(key, "is not a URL of the kind needed here", fix))
}

pub(super) fn within<N: PartialOrd + Copy + Debug>(
    config: &Config,
    key: &str,
    number: N,
    range: RangeInclusive<N>,
) -> Checked {
    if range.contains(&number) {
        return Ok(());
    }
    let fix = format!("write a whole number from {:?} to {:?}", range.start(), range.end());
    Err(config.refuse(key, "is out of range", fix))
}

pub(super) fn duration(
    config: &Config,
    key: &str,
    duration: HumanDuration,
    least: HumanDuration,
    most: HumanDuration,
) -> Checked {
    if (least..=most).contains(&duration) {
        return Ok(());
    }
    Err(config.refuse(key, "is out of range", format!("write a duration from {least} to {most}")))
}
