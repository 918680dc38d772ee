//! Checks that the parts of a configuration agree: order, policies, and what is promised.

use super::rules::Checked;
use crate::config::build::stores_with;
use crate::config::{
    Config, Guarantee, Handler, Mode, OnCompleted, OnExhausted, OnMismatch, OnMissingKey, OnStoreDown,
    Ordering,
};

pub(super) fn check(config: &Config) -> Checked {
    transaction(config)?;
    guarantee(config)?;
    ordering(config)?;
    dead_letters(config)?;
    replies(config)
}

/// A statement runs in the completion's own transaction, so the store decides whether and how.
fn transaction(config: &Config) -> Checked {
    if !matches!(config.handler, Handler::Sql(_)) {
        return Ok(());
    }
    let store = config.store.plugin().facts();
    if !store.is_transactional {
        return Err(config.refuse(
            "handler.sql",
            format!("needs a store with transactions, which [store.{}] has not", config.store.name()),
            format!("use {}, or another handler", stores_with(|store| store.is_transactional)),
        ));
    }
    // With a single writer, a lease cannot be renewed while the handler's transaction is open.
    if store.has_single_writer && config.limits().lease <= config.handler.timeout() {
        return Err(config.refuse(
            &format!("store.{}.lease", config.store.name()),
            "is not longer than handler.sql.timeout, and the store's single writer cannot renew it while the statement runs",
            "make the lease longer than the handler timeout",
        ));
    }
    Ok(())
}

/// A result is replayed to the sender of a message, whose address the message names.
fn replies(config: &Config) -> Checked {
    if config.policy.on_completed == OnCompleted::Ack || config.source.plugin().can_reply() {
        return Ok(());
    }
    Err(config.refuse(
        "policy.on_completed",
        format!(
            "replays results to the senders of messages, and messages of [source.{}] have no address for a reply",
            config.source.name()
        ),
        r#"write "ack""#,
    ))
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
            format!(
                r#"use [handler.sql] with {}, or write guarantee = "deduplicated""#,
                stores_with(|store| store.is_transactional)
            ),
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

fn ordering(config: &Config) -> Checked {
    if config.ordering() == Ordering::Key && config.pipeline.order_by.is_none() {
        let fix = if config.source.plugin().facts().has_record_keys {
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

/// Without a place for them, dead letters would be lost, or block their queue forever.
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
