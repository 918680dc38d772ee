//! Checks the tables of plugins, each by itself and in its context.

use onceward_plugin::{Problem, TargetPlugin};

use super::rules::{Checked, DAY, MILLISECOND, duration};
use crate::config::build::stores_with;
use crate::config::{Config, ConfigError, Contexts, Handler, HumanDuration};

const SECOND: HumanDuration = HumanDuration::from_secs(1);
const TEN_YEARS: HumanDuration = HumanDuration::from_secs(3_650 * 86_400);
const SHORTEST_LEASE: HumanDuration = HumanDuration::from_millis(100);
const LONGEST_LEASE: HumanDuration = HumanDuration::from_secs(12 * 3_600);
const LONGEST_TIMEOUT: HumanDuration = HumanDuration::from_secs(600);

/// A problem that a plugin reports, with its place in the file.
fn placed(config: &Config) -> impl Fn(Problem) -> ConfigError {
    |Problem { key, problem, fix }| config.refuse(&key, problem, fix)
}

pub(super) fn source(config: &Config, contexts: &Contexts<'_>) -> Checked {
    config.source.plugin().check(&contexts.source()).map_err(placed(config))
}

pub(super) fn store(config: &Config, contexts: &Contexts<'_>) -> Checked {
    config.store.plugin().check(&contexts.store()).map_err(placed(config))?;
    limits(config)
}

pub(super) fn handler(config: &Config, contexts: &Contexts<'_>) -> Checked {
    match &config.handler {
        Handler::Publish(target) => {
            target.plugin().check(&contexts.handler()).map_err(placed(config))?;
            publishes_to_source(config, target.plugin())
        }
        _ => Ok(()),
    }
}

/// A handler that publishes into its own source would handle what it has published, without end.
fn publishes_to_source(config: &Config, target: &dyn TargetPlugin) -> Checked {
    let (option, place) = target.place();
    if !config.source.plugin().places().iter().any(|source| source.is_same(&place)) {
        return Ok(());
    }
    Err(config.refuse(
        &format!("{}.{option}", config.handler.path()),
        "leads back to the source, so that messages would circulate for ever",
        "publish to another destination",
    ))
}

fn limits(config: &Config) -> Checked {
    let table = format!("store.{}", config.store.name());
    let (ttl, lease, timeout) =
        (format!("{table}.ttl"), format!("{table}.lease"), format!("{table}.timeout"));
    let limits = config.limits();
    duration(config, &ttl, limits.ttl, SECOND..=TEN_YEARS)?;
    duration(config, &lease, limits.lease, SHORTEST_LEASE..=LONGEST_LEASE)?;
    duration(config, &timeout, limits.timeout, MILLISECOND..=LONGEST_TIMEOUT)?;
    duration(config, &format!("{table}.audit_retention"), limits.audit_retention, DAY..=TEN_YEARS)?;
    if limits.timeout >= limits.lease {
        return Err(config.refuse(
            &timeout,
            format!("is not shorter than {lease}, so a claim could expire before its answer arrives"),
            "lower timeout or raise lease",
        ));
    }
    if limits.ttl < limits.lease {
        return Err(config.refuse(
            &ttl,
            format!("is shorter than {lease}, so a key would be forgotten sooner than its claim"),
            "raise ttl, which has to cover every later delivery of the same message",
        ));
    }
    Ok(())
}

pub(super) fn outbox(config: &Config, contexts: &Contexts<'_>) -> Checked {
    let most = HumanDuration::from_secs(3_650 * DAY.get().as_secs());
    duration(config, "outbox.keep", config.outbox.keep, HumanDuration::from_secs(0)..=most)?;
    let targets = config.outbox.targets();
    let Some((table, relay)) = targets.first().copied() else { return Ok(()) };
    if let Some((second, _)) = targets.get(1) {
        return Err(config.refuse(
            second,
            format!("is given as well as {table}, and a relay publishes to one broker"),
            "keep one of the two; rows for another broker need a store, and a relay, of their own",
        ));
    }
    if !config.store.plugin().facts().has_outbox {
        return Err(config.refuse(
            table,
            format!("has nothing to publish, since [store.{}] has no outbox", config.store.name()),
            format!("remove it, or use {}", stores_with(|store| store.has_outbox)),
        ));
    }
    relay.check(&contexts.table(table)).map_err(placed(config))
}

/// Refuses to expose credentials, unless the table allows it.
pub(super) fn exposures(config: &Config, contexts: &Contexts<'_>) -> Checked {
    match contexts.exposures().find(|(_, exposure)| !exposure.is_allowed) {
        Some((table, exposure)) => {
            let fix =
                format!("{}, or allow_plaintext = true in [{table}] on a private network", exposure.fix);
            Err(config.refuse(&format!("{table}.{}", exposure.option), exposure.problem, fix))
        }
        None => Ok(()),
    }
}
