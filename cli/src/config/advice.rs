//! Advice on configurations that run, but probably not as intended.

use onceward_plugin::FindingDoc;

use super::remark::{Advice, Remark};
use super::{Config, Contexts, Mode, OnStoreDown, OrderBy, Ordering, OwnHeaders};

impl Config {
    /// What will run, but probably not as intended; in the order of the file.
    pub fn advice(&self) -> Vec<Advice> {
        advice(self)
    }
}

/// Every piece of advice, in the order of the file's lines.
fn advice(config: &Config) -> Vec<Advice> {
    let mut advice: Vec<Advice> = [
        observed(config),
        forgetful_store(config),
        short_ttl(config),
        short_drain(config),
        order_by_without_order(config),
        order_without_record_keys(config),
        unguarded(config),
        believed_producers(config),
        unsealed_letters(config),
    ]
    .into_iter()
    .flatten()
    .chain(plugins(config))
    .map(Advice)
    .collect();
    advice.sort_by_key(Advice::line);
    advice
}

fn observed(config: &Config) -> Option<Remark> {
    (config.mode == Mode::Observe).then(|| {
        let problem = "observes only, so duplicates are counted and handled again";
        config
            .origin
            .remark("mode", problem, r#"write mode = "enforce" to suppress them"#)
            .code("mode-observe")
    })
}

fn forgetful_store(config: &Config) -> Option<Remark> {
    config.store.plugin().facts().is_in_memory.then(|| {
        let problem = match config.source.plugin().facts().has_identity {
            false => {
                "remembers nothing once this process ends, neither keys nor how far the file was read, \
                 and shares nothing with other workers"
            }
            true => "remembers nothing once this process ends, and shares nothing with other workers",
        };
        config
            .origin
            .remark(
                &format!("store.{}", config.store.name()),
                problem,
                "use another store for anything but a trial",
            )
            .code("store-in-memory")
    })
}

fn short_ttl(config: &Config) -> Option<Remark> {
    let retry = &config.retry;
    let span = retry.max.get().saturating_mul(retry.max_attempts);
    (config.limits().ttl.get() < span).then(|| {
        config
            .origin
            .remark(
                &format!("store.{}.ttl", config.store.name()),
                "is shorter than all retries may take (retry.max_attempts × retry.max), \
             so a key could be forgotten before its last attempt",
                "raise ttl, or lower retry.max_attempts or retry.max",
            )
            .code("ttl-below-retries")
    })
}

/// Applies only if one of the two was configured: the defaults are for handlers that rarely come near their timeout.
fn short_drain(config: &Config) -> Option<Remark> {
    let timeout = format!("{}.timeout", config.handler.path());
    let is_chosen = config.origin.is_written("pipeline.drain_timeout") || config.origin.is_written(&timeout);
    (is_chosen && config.pipeline.drain_timeout < config.handler.timeout()).then(|| {
        config.origin.remark(
            "pipeline.drain_timeout",
            format!(
                "is shorter than {timeout}, so a handler still running at the end of a drain is cut and its message \
                 is redelivered"
            ),
            "raise drain_timeout, and the platform's own grace period with it, or lower the handler's timeout",
        ).code("drain-timeout-short")
    })
}

fn order_by_without_order(config: &Config) -> Option<Remark> {
    (config.pipeline.order_by.is_some() && config.ordering() != Ordering::Key).then(|| {
        config
            .origin
            .remark(
                "pipeline.order_by",
                "has no effect, since the order is not kept by key",
                r#"write ordering = "key", or remove order_by"#,
            )
            .code("order-by-unused")
    })
}

fn order_without_record_keys(config: &Config) -> Option<Remark> {
    let by_broker = config.ordering() == Ordering::Key && config.pipeline.order_by == Some(OrderBy::Broker);
    (by_broker && !config.source.plugin().facts().has_record_keys).then(|| {
        config
            .origin
            .remark(
                "pipeline.order_by",
                format!("names the broker's key, which [source.{}] does not give", config.source.name()),
                r#"name a header or JSON field, such as "header:customer""#,
            )
            .code("order-by-absent")
    })
}

fn believed_producers(config: &Config) -> Option<Remark> {
    let is_private = config.source.plugin().facts().is_private;
    (config.own_headers() == OwnHeaders::Trusted && !is_private).then(|| {
        config.origin.remark(
            "policy.own_headers",
            "believes what every producer writes into `onceward-` headers: they choose keys and generations, so that an effect can \
             happen more than once and the messages of others can be made to look like copies",
            r#"add secret_file to [key] and write "authenticated""#,
        ).code("own-headers-trusted")
    })
}

/// It works without; but people move letters back by hand.
fn unsealed_letters(config: &Config) -> Option<Remark> {
    let is_private = config.source.plugin().facts().is_private;
    (config.dead_letter.is_some() && config.own_headers() == OwnHeaders::Ignore && !is_private).then(|| {
        config.origin.remark(
            "dead_letter.to",
            "takes letters that nothing proves to be ours when they are moved back: where their key is dead they are dead-lettered \
             again",
            "add secret_file to [key], so that letters are sealed; or move them back with `onceward dlq redrive` only",
        ).code("letters-unsealed")
    })
}

/// What plugins advise, and what is exposed because the table allows it.
fn plugins(config: &Config) -> Vec<Remark> {
    let contexts = Contexts::of(config);
    let advice = contexts.advice().into_iter();
    let advice = advice.map(|found| {
        config.origin.remark(&found.key, found.message, found.fix.unwrap_or_default()).code(found.code)
    });
    let allowed = contexts.exposures().filter(|(_, exposure)| exposure.is_allowed);
    let allowed = allowed.map(|(table, exposure)| {
        let problem = format!("{}; allow_plaintext says that this is wanted", exposure.problem);
        config
            .origin
            .remark(&format!("{table}.{}", exposure.option), problem, exposure.fix)
            .code("plaintext-allowed")
    });
    advice.chain(allowed).collect()
}

fn unguarded(config: &Config) -> Option<Remark> {
    (config.policy.on_store_down == OnStoreDown::Process).then(|| {
        config
            .origin
            .remark(
                "policy.on_store_down",
                "handles messages without deduplication while the store is down",
                r#"write "pause" unless a duplicate costs less than a delay"#,
            )
            .code("store-down-unguarded")
    })
}

/// What the codes of this module and of `check` mean.
pub(crate) const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "invalid-configuration",
        "The configuration file is not valid. No command runs with it.",
        "Correct the key in the line that the message names.",
    ),
    FindingDoc::new(
        "mode-observe",
        "Duplicates are counted and handled again: nothing is suppressed.",
        "Write `mode = \"enforce\"` when the figures are as expected.",
    ),
    FindingDoc::new(
        "ttl-below-retries",
        "All attempts of a message may take longer (`retry.max_attempts` × `retry.max`) than its key is remembered, so that it could be \
         forgotten before the last one.",
        "Raise `ttl`, or lower `retry.max_attempts` or `retry.max`.",
    ),
    FindingDoc::new(
        "drain-timeout-short",
        "A handler that still runs at the end of a drain is cut, and its message is delivered again.",
        "Raise `drain_timeout`, and the grace period of the platform with it, or lower the timeout of the handler.",
    ),
    FindingDoc::new(
        "order-by-unused",
        "`order_by` has no effect, since the order is not kept by key.",
        "Write `ordering = \"key\"`, or remove `order_by`.",
    ),
    FindingDoc::new(
        "order-by-absent",
        "`order_by` names the key of the broker, and messages of this source have none.",
        "Name a header or a JSON field.",
    ),
    FindingDoc::new(
        "own-headers-trusted",
        "Every producer can write `onceward-` headers, which choose keys and generations: it can make an effect happen more than once, or \
         make the messages of others look like copies.",
        "Add `secret_file` to `[key]` and write `own_headers = \"authenticated\"`.",
    ),
    FindingDoc::new(
        "letters-unsealed",
        "Dead letters carry no proof that they are ours. Moved back by hand, they are dead-lettered again where their key is dead.",
        "Add `secret_file` to `[key]`, so that letters are sealed; or move them back with `onceward dlq redrive` only.",
    ),
    FindingDoc::new(
        "store-down-unguarded",
        "Messages are handled without deduplication while the store is down.",
        "Write `on_store_down = \"pause\"`, unless a duplicate costs less than a delay.",
    ),
    FindingDoc::new(
        "plaintext-allowed",
        "A credential crosses the network in plain text, or the server is not verified; `allow_plaintext` permits it.",
        "Use TLS, and remove `allow_plaintext`.",
    ),
    FindingDoc::new(
        "secret-file-readable",
        "Other users of the host can read a file with a password or a private key.",
        "Remove the permission: `chmod o-rwx`. The group may read the file.",
    ),
    FindingDoc::new(
        "statement-unchecked",
        "The statement of `[handler.sql]` was not checked, because the store is not available.",
        "Check again when it is.",
    ),
    FindingDoc::new(
        "collector-unavailable",
        "The OpenTelemetry collector does not take an export of nothing. What it does not take is lost for it; messages do not depend on it.",
        "Start the collector, or correct its URL and its login.",
    ),
];
