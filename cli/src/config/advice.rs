//! Advice on configurations that run, but probably not as intended.

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
        config.origin.remark("mode", problem, r#"write mode = "enforce" to suppress them"#)
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
        config.origin.remark(
            &format!("store.{}", config.store.name()),
            problem,
            "use another store for anything but a trial",
        )
    })
}

fn short_ttl(config: &Config) -> Option<Remark> {
    let retry = &config.retry;
    let span = retry.max.get().saturating_mul(retry.max_attempts);
    (config.limits().ttl.get() < span).then(|| {
        config.origin.remark(
            &format!("store.{}.ttl", config.store.name()),
            "is shorter than all retries may take (retry.max_attempts × retry.max), \
             so a key could be forgotten before its last attempt",
            "raise ttl, or lower retry.max_attempts or retry.max",
        )
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
        )
    })
}

fn order_by_without_order(config: &Config) -> Option<Remark> {
    (config.pipeline.order_by.is_some() && config.ordering() != Ordering::Key).then(|| {
        config.origin.remark(
            "pipeline.order_by",
            "has no effect, since the order is not kept by key",
            r#"write ordering = "key", or remove order_by"#,
        )
    })
}

fn order_without_record_keys(config: &Config) -> Option<Remark> {
    let by_broker = config.ordering() == Ordering::Key && config.pipeline.order_by == Some(OrderBy::Broker);
    (by_broker && !config.source.plugin().facts().has_record_keys).then(|| {
        config.origin.remark(
            "pipeline.order_by",
            format!("names the broker's key, which [source.{}] does not give", config.source.name()),
            r#"name a header or JSON field, such as "header:customer""#,
        )
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
        )
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
        )
    })
}

/// What plugins advise, and what is exposed because the table allows it.
fn plugins(config: &Config) -> Vec<Remark> {
    let contexts = Contexts::of(config);
    let advice = contexts.advice().into_iter();
    let advice = advice.map(|advice| config.origin.remark(&advice.key, advice.problem, advice.fix));
    let allowed = contexts.exposures().into_iter().filter(|(_, exposure)| exposure.is_allowed);
    let allowed = allowed.map(|(table, exposure)| {
        let problem = format!("{}; allow_plaintext says that this is wanted", exposure.problem);
        config.origin.remark(&format!("{table}.{}", exposure.option), problem, exposure.fix)
    });
    advice.chain(allowed).collect()
}

fn unguarded(config: &Config) -> Option<Remark> {
    (config.policy.on_store_down == OnStoreDown::Process).then(|| {
        config.origin.remark(
            "policy.on_store_down",
            "handles messages without deduplication while the store is down",
            r#"write "pause" unless a duplicate costs less than a delay"#,
        )
    })
}
