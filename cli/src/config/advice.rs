//! What will run, but probably not as intended.

use std::time::Duration;

use onceward::pipeline::start_check::HEADROOM;

use super::plaintext;
use super::remark::{Advice, Remark};
use super::{
    Config, FileFormat, Handler, KeyPart, Mode, OnMissingKey, OnStoreDown, OrderBy, Ordering, OwnHeaders,
    Source, Store,
};

/// Every piece of advice, in the order of the file's lines.
pub(super) fn advice(config: &Config) -> Vec<Advice> {
    let mut advice: Vec<Advice> = [
        observed(config),
        forgetful_store(config),
        short_ttl(config),
        absent_key_source(config),
        idle_concurrency(config),
        few_connections(config),
        short_ack_timeout(config),
        retries_beyond_ack_timeout(config),
        deep_prefetch(config),
        absent_message_id(config),
        low_delivery_limit(config),
        short_visibility(config),
        short_drain(config),
        order_by_without_order(config),
        order_without_record_keys(config),
        order_across_workers(config),
        unguarded(config),
        unnamed_server(config),
        believed_producers(config),
        unsealed_letters(config),
    ]
    .into_iter()
    .flatten()
    .chain(plaintext(config))
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
    matches!(config.store, Store::Memory(_)).then(|| {
        let problem = match &config.source {
            Source::File(_) => {
                "remembers nothing once this process ends, neither keys nor how far the file was read, \
                 and shares nothing with other workers"
            }
            _ => "remembers nothing once this process ends, and shares nothing with other workers",
        };
        config.origin.remark("store.memory", problem, "use another store for anything but a trial")
    })
}

fn short_ttl(config: &Config) -> Option<Remark> {
    let retry = &config.retry;
    let span = retry.max.get().saturating_mul(retry.max_attempts);
    (config.store.limits().ttl.get() < span).then(|| {
        config.origin.remark(
            &format!("store.{}.ttl", config.store.name()),
            "is shorter than all retries may take (retry.max_attempts × retry.max), \
             so a key could be forgotten before its last attempt",
            "raise ttl, or lower retry.max_attempts or retry.max",
        )
    })
}

/// A raw line has neither headers nor an id.
fn absent_key_source(config: &Config) -> Option<Remark> {
    let Source::File(file) = &config.source else { return None };
    if file.format != FileFormat::Raw {
        return None;
    }
    let absent = |part: &KeyPart| matches!(part, KeyPart::Header(_) | KeyPart::MessageId);
    let index = config.key.from.iter().position(|source| source.parts().iter().any(absent))?;
    Some(config.origin.remark(
        &format!("key.from[{index}]"),
        "is never present, since a raw line has neither headers nor an id",
        r#"write format = "envelope" in [source.file], or take the key from json:/… or position"#,
    ))
}

fn idle_concurrency(config: &Config) -> Option<Remark> {
    let Source::Rabbitmq(source) = &config.source else { return None };
    (source.prefetch(config.pipeline.concurrency) < config.pipeline.concurrency).then(|| {
        config.origin.remark(
            "source.rabbitmq.prefetch",
            "is less than pipeline.concurrency, so that many handlers never run",
            "raise prefetch or lower concurrency",
        )
    })
}

fn few_connections(config: &Config) -> Option<Remark> {
    let (Store::Postgres(store), Handler::Sql(_)) = (&config.store, &config.handler) else { return None };
    (store.connections < config.pipeline.concurrency).then(|| {
        config.origin.remark(
            "store.postgres.connections",
            "is less than pipeline.concurrency, so that statements wait for a connection under their claim",
            "raise connections or lower concurrency",
        )
    })
}

fn short_ack_timeout(config: &Config) -> Option<Remark> {
    let Source::Rabbitmq(source) = &config.source else { return None };
    let (timeout, handler) = (source.ack_timeout, format!("{}.timeout", config.handler.path()));
    (timeout.get() > Duration::ZERO && timeout < config.handler.timeout()).then(|| {
        config.origin.remark(
            "source.rabbitmq.ack_timeout",
            format!(
                "is shorter than {handler}, so the broker takes messages back from handlers that still run"
            ),
            "raise the broker's consumer_timeout and write its value here, or lower the handler's timeout",
        )
    })
}

/// A message is given back at three quarters of the timeout and received again, which a quorum queue counts.
fn retries_beyond_ack_timeout(config: &Config) -> Option<Remark> {
    let Source::Rabbitmq(source) = &config.source else { return None };
    let timeout = source.ack_timeout.get();
    let longest = config.retry.max.get();
    if timeout.is_zero() || longest < timeout * 3 / 4 || source.wait_queues_from.is_some() {
        return None;
    }
    Some(config.origin.remark(
        "source.rabbitmq.ack_timeout",
        "is not much longer than retry.max, so messages that wait for a retry are redelivered meanwhile, which uses up the \
         delivery limit of a quorum queue",
        "write wait_queues_from, so that they wait in the broker; or raise consumer_timeout and write its value here",
    ))
}

/// The last message received waits for the handlers of all before it.
fn deep_prefetch(config: &Config) -> Option<Remark> {
    let Source::Rabbitmq(source) = &config.source else { return None };
    let timeout = source.ack_timeout.get();
    let concurrency = config.pipeline.concurrency.max(1);
    let rounds = source.prefetch(concurrency).div_ceil(concurrency);
    let wait = config.handler.timeout().get().saturating_mul(rounds);
    (!timeout.is_zero() && config.handler.timeout().get() <= timeout && wait > timeout).then(|| {
        config.origin.remark(
            "source.rabbitmq.prefetch",
            format!(
                "lets messages wait longer than ack_timeout if handlers take as long as {}.timeout allows: they are \
                 redelivered, which uses up the delivery limit of a quorum queue",
                config.handler.path()
            ),
            "lower prefetch, raise concurrency, or raise consumer_timeout and write its value as ack_timeout",
        )
    })
}

/// RabbitMQ gives no id of its own, and a queue has no positions.
fn absent_message_id(config: &Config) -> Option<Remark> {
    let Source::Rabbitmq(_) = &config.source else { return None };
    let by_default = !config.origin.is_written("key.from");
    (by_default && config.policy.on_missing_key == OnMissingKey::DeadLetter).then(|| {
        config.origin.remark(
            "key.from",
            "is not written, so the key is the message id, which RabbitMQ itself gives to no message: each message whose \
             producer sets none is dead-lettered at once",
            r#"write from = ["message-id"] if all producers set it; or name a header or a field, such as "json:/id""#,
        )
    })
}

/// Retries wait in this process and use up no deliveries; crashes and lost connections do.
fn low_delivery_limit(config: &Config) -> Option<Remark> {
    let Source::Rabbitmq(source) = &config.source else { return None };
    let needed = config.retry.max_attempts.saturating_add(HEADROOM);
    (source.delivery_limit? < needed).then(|| {
        config.origin.remark(
            "source.rabbitmq.delivery_limit",
            "leaves no room for redeliveries after crashes and lost connections beside retry.max_attempts: beyond it the \
             broker drops a message, and it is lost unless the queue has a dead-letter exchange",
            format!(
                "give the queue a dead-letter exchange, and raise x-delivery-limit to {needed} or more, or lower \
                 max_attempts; a small prefetch leaves fewer messages to a crash"
            ),
        )
    })
}

/// The heartbeat keeps a message invisible for as long as its handler runs, but for a worker that is paused or cut off.
fn short_visibility(config: &Config) -> Option<Remark> {
    let Source::Sqs(source) = &config.source else { return None };
    (source.visibility < config.handler.timeout()).then(|| {
        config.origin.remark(
            "source.sqs.visibility",
            format!(
                "is shorter than {}.timeout, so a worker that is paused or cut off for that long may see messages go to \
                 another one while their handlers run; they are not handled twice, but received again",
                config.handler.path()
            ),
            "raise visibility, unless a dead worker's messages must come back sooner",
        )
    })
}

/// Only where somebody chose one of the two: the defaults are for handlers that rarely come near their timeout.
fn short_drain(config: &Config) -> Option<Remark> {
    let timeout = format!("{}.timeout", config.handler.path());
    let is_chosen = config.origin.is_written("pipeline.drain_timeout") || config.origin.is_written(&timeout);
    (is_chosen && config.pipeline.drain_timeout < config.handler.timeout()).then(|| {
        config.origin.remark(
            "pipeline.drain_timeout",
            format!(
                "is shorter than {timeout}, so a handler still running at the end of a drain is cut and its message \
                 comes again"
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
    (by_broker && !config.source.has_record_keys()).then(|| {
        config.origin.remark(
            "pipeline.order_by",
            format!("names the broker's key, which [source.{}] does not give", config.source.name()),
            r#"name a header or JSON field, such as "header:customer""#,
        )
    })
}

/// Lanes order the messages of one worker; between workers only the broker can.
fn order_across_workers(config: &Config) -> Option<Remark> {
    if config.ordering() != Ordering::Key {
        return None;
    }
    let (problem, fix) = match &config.source {
        Source::Rabbitmq(source) if !source.single_active_consumer => (
            "holds within one worker only, unless the queue has a single active consumer",
            "run one worker; or give the queue x-single-active-consumer and write single_active_consumer = true; or use a \
             consistent-hash exchange",
        ),
        Source::Sqs(source) if !source.is_fifo() => (
            "holds within one worker only, since a standard queue keeps no order itself",
            "run one worker, or use a FIFO queue",
        ),
        Source::Kafka(_) if matches!(config.pipeline.order_by, Some(OrderBy::Source(_))) => (
            "holds within one worker only, unless producers partition by the same value",
            r#"write order_by = "broker", or partition the topic by that value"#,
        ),
        _ => return None,
    };
    Some(config.origin.remark("pipeline.ordering", problem, fix))
}

fn believed_producers(config: &Config) -> Option<Remark> {
    let is_file = matches!(config.source, Source::File(_));
    (config.own_headers() == OwnHeaders::Trusted && !is_file).then(|| {
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
    let is_file = matches!(config.source, Source::File(_));
    (config.dead_letter.is_some() && config.own_headers() == OwnHeaders::Ignore && !is_file).then(|| {
        config.origin.remark(
            "dead_letter.to",
            "takes letters that nothing proves to be ours when they are moved back: where their key is dead they are dead-lettered \
             again",
            "add secret_file to [key], so that letters are sealed; or move them back with `onceward dlq redrive` only",
        )
    })
}

/// What is shown to others because it was allowed.
fn plaintext(config: &Config) -> impl Iterator<Item = Remark> {
    let allowed = plaintext::exposures(config).into_iter().filter(|exposure| exposure.allowed);
    allowed.map(|exposure| {
        let problem = format!("{}; allow_plaintext says that this is wanted", exposure.problem);
        config.origin.remark(&exposure.key, problem, exposure.fix)
    })
}

/// It takes the certificate of any host that the authority has signed one for.
fn unnamed_server(config: &Config) -> Option<Remark> {
    let Store::Postgres(store) = &config.store else { return None };
    let is_unnamed = |(name, value): (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)| {
        matches!(&*name, "sslmode" | "ssl-mode") && value.eq_ignore_ascii_case("verify-ca")
    };
    let url = url::Url::parse(store.url.expose()).ok()?;
    url.query_pairs().any(is_unnamed).then(|| {
        config.origin.remark(
            "store.postgres.url",
            "has sslmode=verify-ca, which takes every server that the same authority has signed for",
            "write sslmode=verify-full, unless the authority is for this server alone",
        )
    })
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
