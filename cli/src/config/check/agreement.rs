//! Checks that the parts of a configuration agree: order, policies, and what is promised.

use std::path::{Component, Path};

use super::Checked;
use crate::config::{
    Config, Guarantee, Handler, Mode, OnCompleted, OnExhausted, OnMismatch, OnMissingKey, OnStoreDown,
    OrderBy, Ordering, PublishHandler, Source, Store,
};

pub(super) fn check(config: &Config) -> Checked {
    transaction(config)?;
    guarantee(config)?;
    ordering(config)?;
    dead_letters(config)?;
    destinations(config)?;
    if config.policy.on_completed == OnCompleted::ReplayResult {
        return Err(config.refuse(
            "policy.on_completed",
            "asks for the recorded result to be given again, but a broker has nobody waiting for it",
            r#"write "ack""#,
        ));
    }
    Ok(())
}

/// A statement runs in the completion's own transaction, so the store decides whether and how.
fn transaction(config: &Config) -> Checked {
    if !matches!(config.handler, Handler::Sql(_)) {
        return Ok(());
    }
    if !config.store.is_transactional() {
        return Err(config.refuse(
            "handler.sql",
            format!("needs a store with transactions, which [store.{}] has not", config.store.name()),
            "use [store.sqlite] or [store.postgres], or another handler",
        ));
    }
    // SQLite has a single writer, so a lease cannot be renewed while the handler's transaction is open.
    if matches!(config.store, Store::Sqlite(_)) && config.store.limits().lease <= config.handler.timeout() {
        return Err(config.refuse(
            "store.sqlite.lease",
            "is not longer than handler.sql.timeout, and SQLite cannot renew it while the statement runs",
            "make the lease longer than the handler timeout",
        ));
    }
    Ok(())
}

fn guarantee(config: &Config) -> Checked {
    if config.guarantee != Guarantee::EffectivelyOnce {
        return Ok(());
    }
    if !matches!(config.handler, Handler::Sql(_)) {
        return Err(config.refuse(
            "guarantee",
            format!(
                "promises effectively-once, which [{}] cannot give: its effect is not in the completion's transaction",
                config.handler.path()
            ),
            r#"use [handler.sql] with [store.sqlite] or [store.postgres], or write guarantee = "deduplicated""#,
        ));
    }
    let policy = &config.policy;
    let broken_by = [
        ("mode", config.mode == Mode::Observe, r#"write mode = "enforce""#),
        (
            "policy.on_missing_key",
            policy.on_missing_key == OnMissingKey::Process,
            r#"write "dead-letter", "hash" or "reject""#,
        ),
        ("policy.on_mismatch", policy.on_mismatch == OnMismatch::Process, r#"write "dead-letter" or "ack""#),
        ("policy.on_store_down", policy.on_store_down == OnStoreDown::Process, r#"write "pause""#),
    ];
    match broken_by.into_iter().find(|(_, broken, _)| *broken) {
        Some((key, _, fix)) => Err(config.refuse(
            key,
            "handles messages that may be duplicates, which guarantee = \"effectively-once\" rules out",
            format!("{fix}, or guarantee = \"deduplicated\""),
        )),
        None => Ok(()),
    }
}

/// A failed message of a FIFO queue holds the rest of its group, so that the queue's own order can be kept and no other.
fn groups(config: &Config) -> Checked {
    let Source::Sqs(source) = &config.source else { return Ok(()) };
    let fix = r#"remove it, or write ordering = "key" with order_by = "broker", or use a standard queue"#;
    match (config.ordering(), &config.pipeline.order_by) {
        _ if !source.is_fifo() => Ok(()),
        (Ordering::Key, Some(OrderBy::Broker) | None) => Ok(()),
        (Ordering::Key, Some(OrderBy::Source(_))) => Err(config.refuse(
            "pipeline.order_by",
            "names another order than a FIFO queue's own, which is by message group",
            fix,
        )),
        (Ordering::Partition | Ordering::None, _) => Err(config.refuse(
            "pipeline.ordering",
            "gives up the order of the message groups that a FIFO queue is there to keep",
            fix,
        )),
    }
}

fn ordering(config: &Config) -> Checked {
    groups(config)?;
    if config.ordering() == Ordering::Key && config.pipeline.order_by.is_none() {
        let fix = if config.source.has_record_keys() {
            r#"add order_by = "broker", or a header or JSON field, such as "json:/customer/id""#
        } else {
            r#"add order_by with a header or JSON field, such as "header:customer" or "json:/customer/id""#
        };
        return Err(config.refuse(
            "pipeline.ordering",
            "keeps order by key, but pipeline.order_by is missing",
            fix,
        ));
    }
    Ok(())
}

/// Without a place for them, dead letters would be lost, or block their queue for ever.
fn dead_letters(config: &Config) -> Checked {
    if config.dead_letter.is_some() {
        return Ok(());
    }
    let policy = &config.policy;
    let wanted_by = [
        (
            "on_missing_key",
            policy.on_missing_key == OnMissingKey::DeadLetter,
            r#""hash", "process" or "reject""#,
        ),
        ("on_mismatch", policy.on_mismatch == OnMismatch::DeadLetter, r#""ack" or "process""#),
        ("on_exhausted", policy.on_exhausted == OnExhausted::DeadLetter, r#""park""#),
    ];
    let Some((name, _, others)) = wanted_by.into_iter().find(|(_, wanted, _)| *wanted) else { return Ok(()) };
    let key = format!("policy.{name}");
    let by_default = if config.origin.is_written(&key) { "" } else { " by default" };
    Err(config.refuse(
        &key,
        format!("dead-letters{by_default}, but there is no [dead_letter]"),
        format!("add [dead_letter] with `to`, or write {name} = {others} in [policy]"),
    ))
}

/// A dead letter that arrives at its own source is a redrive: its message would run for ever.
fn destinations(config: &Config) -> Checked {
    if let Some(dead_letter) = &config.dead_letter {
        let to = dead_letter.to.expose();
        let fix = "give dead letters a destination of their own";
        match &config.source {
            Source::Rabbitmq(source) if to == source.queue => {
                return Err(config.refuse("dead_letter.to", "is the queue that messages come from", fix));
            }
            Source::Rabbitmq(source) if to.starts_with(&format!("{}.wait.", source.queue)) => {
                return Err(config.refuse("dead_letter.to", "is a wait queue of the source", fix));
            }
            Source::Kafka(source) if source.topics.iter().any(|topic| topic == to) => {
                return Err(config.refuse("dead_letter.to", "is a topic that messages come from", fix));
            }
            Source::Kafka(source) if source.retry_topics.contains_key(to) => {
                return Err(config.refuse("dead_letter.to", "is a retry topic of the source", fix));
            }
            Source::Sqs(source) if same_url(to, source.queue_url.expose()) => {
                return Err(config.refuse("dead_letter.to", "is the queue that messages come from", fix));
            }
            Source::File(source)
                if same_path(&config.resolve(to.as_ref()), &config.resolve(&source.path)) =>
            {
                return Err(config.refuse("dead_letter.to", "is the file that messages come from", fix));
            }
            _ => {}
        }
    }
    publishes_to_source(config)
}

/// A bridge into its own source would handle what it has published, without end.
fn publishes_to_source(config: &Config) -> Checked {
    let Handler::Publish(target) = &config.handler else { return Ok(()) };
    let (key, is_source) = match (target, &config.source) {
        (PublishHandler::Rabbitmq(target), Source::Rabbitmq(source)) => (
            "handler.publish.rabbitmq.routing_key",
            target.exchange.is_empty()
                && target.routing_key == source.queue
                && same_url(target.url.expose(), source.url.expose()),
        ),
        (PublishHandler::Kafka(target), Source::Kafka(source)) => (
            "handler.publish.kafka.topic",
            (source.topics.contains(&target.topic) || source.retry_topics.contains_key(&target.topic))
                && target.brokers.iter().any(|broker| source.brokers.contains(broker)),
        ),
        (PublishHandler::Sqs(target), Source::Sqs(source)) => {
            ("handler.publish.sqs.queue_url", same_url(target.queue_url.expose(), source.queue_url.expose()))
        }
        _ => return Ok(()),
    };
    if is_source {
        let fix = "publish to another destination";
        return Err(config.refuse(
            key,
            "leads back to the source, so that messages would go round for ever",
            fix,
        ));
    }
    Ok(())
}

/// Equal but for letter case in scheme and host, a default port, the login, a query and a slash at the end.
fn same_url(one: &str, other: &str) -> bool {
    let plain = |text: &str| {
        let mut url = url::Url::parse(text).ok()?;
        url.set_query(None);
        // Neither matters for where it leads; a URL that cannot have them has none.
        let _ = (url.set_username(""), url.set_password(None));
        Some(url.as_str().trim_end_matches('/').to_owned())
    };
    match (plain(one), plain(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// Equal once `.` and doubled slashes are gone. What links lead to is looked at when the files are opened.
fn same_path(one: &Path, other: &Path) -> bool {
    let parts = |path: &Path| {
        path.components()
            .filter(|part| *part != Component::CurDir)
            .map(|part| part.as_os_str().to_owned())
            .collect::<Vec<_>>()
    };
    parts(one) == parts(other)
}
