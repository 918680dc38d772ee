//! Checks all systems that a configuration names: source, store, handler, dead-letter destination and outbox target.

use std::time::Duration;

use onceward::{Error, ErrorKind};
use tokio_util::sync::CancellationToken;

use super::files;
use super::finding::Finding;
use crate::config::{Config, Handler, Source};
use crate::registry::{self, DeadLetterFacts, OpenStore, Purpose};

/// The time limit of each part.
const PATIENCE: Duration = Duration::from_secs(15);

/// Adds a finding for each part.
pub(super) async fn findings(config: &Config, findings: &mut Vec<Finding>) {
    match &config.source {
        Source::File(file) => findings.push(files::source(config, file)),
        _ => broker(config, findings).await,
    }
    let store = store(config, findings).await;
    findings.push(handler(config, store.as_ref()).await);
    if let (Source::File(_), Some(dead_letter)) = (&config.source, &config.dead_letter) {
        let path = config.resolve(dead_letter.to.expose().as_ref());
        findings.push(files::dead_letters(config, &path));
    }
    findings.extend(outbox_target(config).await);
    if let Some(store) = store {
        store.close().await;
    }
}

/// The broker that the relay publishes to, if it is not that of the source.
async fn outbox_target(config: &Config) -> Option<Finding> {
    let key = config.outbox.target()?.path();
    match in_time(registry::check_outbox_target(config)).await {
        Ok(answer) => Some(Finding::ok(config, Some(key), answer?)),
        Err(error) => Some(Finding::failed(config, key, &error)),
    }
}

/// The broker of the source, and its dead-letter destination.
async fn broker(config: &Config, findings: &mut Vec<Finding>) {
    let key = format!("source.{}", config.source.name());
    findings.push(match in_time(registry::broker_backlog(config)).await {
        Ok(backlog) => {
            let mut message = format!("{} answers", registry::describe_source(config));
            if let Some(waits) = backlog.map(|backlog| backlog.to_string()).filter(|waits| !waits.is_empty())
            {
                message = format!("{message}, {waits}");
            }
            Finding::ok(config, Some(&key), message)
        }
        Err(error) => {
            findings.push(Finding::failed(config, &key, &error));
            // The same broker would fail in the same way.
            return;
        }
    });
    match in_time(registry::broker_advice(config)).await {
        Ok(advice) => findings.extend(advice.iter().map(|advice| Finding::advised(config, &key, advice))),
        Err(error) => findings.push(Finding::failed(config, &key, &error)),
    }
    findings.push(match in_time(registry::dead_letter_facts(config)).await {
        Ok(None) => return,
        Ok(Some(DeadLetterFacts { place, letters })) => {
            let letters = letters.map(|letters| format!(", {letters} dead letters")).unwrap_or_default();
            Finding::ok(config, Some("dead_letter.to"), format!("{place} is there{letters}"))
        }
        Err(error) => Finding::failed(config, "dead_letter.to", &error),
    });
}

async fn store(config: &Config, findings: &mut Vec<Finding>) -> Option<OpenStore> {
    let key = format!("store.{}", config.store.name());
    if let Some(path) = registry::file_to_come(config) {
        let named = path.display();
        findings.push(match files::writable_directory(&path) {
            Ok(()) => Finding::warning(
                config,
                &key,
                format!("there is no file {named} yet; the first run creates it"),
                "check the path if keys should be in it already",
            ),
            Err(what) => Finding::error(
                config,
                &key,
                format!("{named} cannot be created, since {what}"),
                "create the directory and make it writable for this user",
            ),
        });
        return None;
    }
    match in_time(registry::missing_migrations(config)).await {
        Ok(0) => {}
        Ok(missing) => {
            findings.push(Finding::warning(
                config,
                &key,
                format!(
                    "{} answers, and its schema lacks {missing} of this version's steps; the next run takes them",
                    registry::describe_store(config)
                ),
                "if the user of a run may not change the schema, let one that may run `onceward migrate` first",
            ));
            return None;
        }
        Err(error) => {
            findings.push(Finding::failed(config, &key, &error));
            return None;
        }
    }
    let opened = in_time(async {
        let store = registry::open_store(config, Purpose::Check).await?;
        let advice = store.check(config).await?;
        Ok((store, advice))
    });
    match opened.await {
        Ok((store, advice)) => {
            findings.push(Finding::ok(
                config,
                Some(&key),
                format!("{} answers", registry::describe_store(config)),
            ));
            findings.extend(advice.iter().map(|advice| Finding::advised(config, &key, advice)));
            Some(store)
        }
        Err(error) => {
            findings.push(Finding::failed(config, &key, &error));
            None
        }
    }
}

async fn handler(config: &Config, store: Option<&OpenStore>) -> Finding {
    let key = config.handler.path();
    let checked = async {
        let scope = registry::scope(config)?;
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
            return Finding::warning(config, &key, message, "check again when it is");
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
