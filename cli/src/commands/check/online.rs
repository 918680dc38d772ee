//! Checks all systems that a configuration names: source, store, handler, dead-letter destination, outbox target
//! and collector.

use std::time::Duration;

use onceward::{Error, ErrorKind};
use tokio_util::sync::CancellationToken;

use super::finding::Finding;
use crate::config::{self, Config, Contexts, Handler, Lookup};
use crate::registry::{self, OpenStore, Purpose};
use crate::telemetry::probe_collectors;

/// The time limit of each part.
const PATIENCE: Duration = Duration::from_secs(15);

/// Adds a finding for each part.
pub(super) async fn findings(config: &Config, env: Lookup<'_>, findings: &mut Vec<Finding>) {
    source(config, findings).await;
    let store = store(config, findings).await;
    findings.push(handler(config, store.as_ref()).await);
    findings.extend(outbox_target(config).await);
    findings.extend(collectors(config, env).await);
    if let Some(store) = store {
        store.close().await;
    }
}

/// The broker that the relay publishes to, if it is not that of the source.
async fn outbox_target(config: &Config) -> Option<Finding> {
    let key = config.outbox.targets().first()?.0;
    match in_time(registry::check_outbox_target(config)).await {
        Ok(answer) => Some(Finding::ok(config, Some(key), answer?)),
        Err(error) => Some(Finding::failed(config, key, &error)),
    }
}

/// The collectors of telemetry. Messages do not depend on them.
async fn collectors(config: &Config, env: Lookup<'_>) -> Vec<Finding> {
    let key = "telemetry.otlp";
    let answers = probe_collectors(config, env).await.into_iter();
    let finding = |answer| match answer {
        Ok(message) => Finding::ok(config, Some(key), message),
        Err(message) => {
            let fix = "start the collector, or correct its URL and its login";
            Finding::warning(config, "collector-unavailable", key, message, fix)
        }
    };
    answers.map(finding).collect()
}

/// The source, and its dead-letter destination.
async fn source(config: &Config, findings: &mut Vec<Finding>) {
    let (contexts, plugin) = (Contexts::of(config), config.source.plugin());
    let context = contexts.source();
    match in_time(plugin.inspect(&context)).await {
        Ok(found) => findings.extend(found.into_iter().map(|found| Finding::plugin(config, found))),
        Err(error) => {
            findings.push(Finding::failed(config, context.table(), &error));
            // The same system would fail in the same way.
            return;
        }
    }
    let Some(dead_letter) = &config.dead_letter else { return };
    findings.push(match in_time(plugin.inspect_dead_letters(&context, dead_letter.to.expose())).await {
        Ok(found) => Finding::plugin(config, found),
        Err(error) => Finding::failed(config, "dead_letter.to", &error),
    });
}

async fn store(config: &Config, findings: &mut Vec<Finding>) -> Option<OpenStore> {
    let contexts = Contexts::of(config);
    let context = contexts.store();
    match in_time(config.store.plugin().inspect(&context)).await {
        Ok(None) => {}
        Ok(Some(found)) => {
            findings.push(Finding::plugin(config, found));
            return None;
        }
        Err(error) => {
            findings.push(Finding::failed(config, context.table(), &error));
            return None;
        }
    }
    let opened = in_time(async {
        let store = registry::open_store(config, Purpose::Check).await?;
        let advice = registry::check_store(config, &store).await?;
        Ok((store, advice))
    });
    match opened.await {
        Ok((store, advice)) => {
            let answers = format!("{} answers", registry::describe_store(config));
            findings.push(Finding::ok(config, Some(context.table()), answers));
            findings
                .extend(advice.into_iter().map(|advice| Finding::advised(config, context.table(), advice)));
            Some(store)
        }
        Err(error) => {
            findings.push(Finding::failed(config, context.table(), &error));
            None
        }
    }
}

async fn handler(config: &Config, store: Option<&OpenStore>) -> Finding {
    let key = config.handler.path();
    let checked = async {
        let scope = config::scope(config)?;
        match in_time(registry::open_handler(config, &scope, &CancellationToken::new())).await? {
            Some(handler) => in_time(handler.check()).await.map(|()| true),
            None => match store {
                Some(store) => in_time(registry::check_statement(config, store)).await.map(|()| true),
                None => Ok(false),
            },
        }
    };
    let message = match (checked.await, &config.handler) {
        (Err(error), _) => return Finding::failed(config, &key, &error),
        (Ok(false), _) => {
            let message = "its statement was not checked, because the store is not available";
            return Finding::warning(config, "statement-unchecked", &key, message, "check again when it is");
        }
        (Ok(true), Handler::Exec(_) | Handler::Worker(_)) => "its program exists and is executable",
        (Ok(true), Handler::Http(_)) => "its server accepts connections",
        (Ok(true), Handler::Sql(_)) => "the store accepts its statement",
        (Ok(true), Handler::Publish(_)) => "its broker responds and has the destination",
        (Ok(true), Handler::Stdout(_)) => "needs nothing",
    };
    Finding::ok(config, Some(&key), message)
}

async fn in_time<T>(part: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(PATIENCE, part).await.unwrap_or_else(|_| {
        let what = format!("it did not respond within {PATIENCE:?}");
        Err(Error::new(ErrorKind::Timeout, "check it", what))
    })
}
