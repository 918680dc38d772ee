//! Defaults that follow from what is written: a value that a user sets never makes an untouched default invalid.
//!
//! Only keys that are not written change. What contradicts itself afterwards was written so, on both sides, and
//! [`check`](super::check) refuses it.

use std::time::Duration;

use super::{Config, Handler, HumanDuration, OrderBy, Ordering, PublishHandler, Source, Store};

/// Fills in every default that depends on a written value.
pub(super) fn derive(config: &mut Config) {
    ordering(config);
    pipeline(config);
    retry(config);
    leases(config);
    message_bytes(config);
}

fn ordering(config: &mut Config) {
    let pipeline = &mut config.pipeline;
    let has_record_keys = config.source.has_record_keys();
    if pipeline.ordering.is_none() {
        pipeline.ordering = Some(match &config.source {
            // Messages in a retry topic give up their place in the order.
            Source::Kafka(kafka) if !kafka.retry_topics.is_empty() => Ordering::None,
            _ if pipeline.order_by.is_some() => Ordering::Key,
            Source::Kafka(_) => Ordering::Partition,
            Source::Sqs(sqs) if sqs.is_fifo() => Ordering::Key,
            Source::Sqs(_) | Source::Rabbitmq(_) | Source::File(_) => Ordering::None,
        });
    }
    if pipeline.ordering == Some(Ordering::Key) && has_record_keys {
        pipeline.order_by.get_or_insert(OrderBy::Broker);
    }
}

/// `concurrency`, `max_in_flight`, `max_batch` and `handler.sql.batch` bound each other.
fn pipeline(config: &mut Config) {
    let written = |key: &str| config.origin.is_written(key);
    let (concurrency, in_flight, batch) =
        (written("pipeline.concurrency"), written("pipeline.max_in_flight"), written("pipeline.max_batch"));
    let shared = match &config.handler {
        Handler::Sql(sql) => sql.batch,
        _ => 1,
    };
    let shared_written = written("handler.sql.batch");
    let pipeline = &mut config.pipeline;
    if !concurrency {
        if in_flight {
            pipeline.concurrency = pipeline.concurrency.min(pipeline.max_in_flight);
        }
        if shared_written {
            pipeline.concurrency = pipeline.concurrency.max(shared);
        }
    }
    if !in_flight {
        let wanted = pipeline.concurrency.saturating_mul(4).max(if batch { pipeline.max_batch } else { 0 });
        pipeline.max_in_flight = pipeline.max_in_flight.max(wanted).min(1_048_576).max(pipeline.concurrency);
    }
    if !batch {
        pipeline.max_batch = pipeline.max_batch.max(if shared_written { shared.min(4_096) } else { 1 });
        pipeline.max_batch = pipeline.max_batch.min(pipeline.max_in_flight);
    }
    if let Handler::Sql(sql) = &mut config.handler
        && !shared_written
    {
        sql.batch = sql.batch.min(pipeline.concurrency).min(pipeline.max_batch).max(1);
    }
}

fn retry(config: &mut Config) {
    let (initial, max) = (config.origin.is_written("retry.initial"), config.origin.is_written("retry.max"));
    let retry = &mut config.retry;
    match (initial, max) {
        (true, false) => retry.max = retry.max.max(retry.initial),
        (false, true) => retry.initial = retry.initial.min(retry.max),
        _ => {}
    }
}

/// `ttl` ≥ `lease` > `timeout`; for a statement in SQLite `lease` > `handler.sql.timeout` as well.
fn leases(config: &mut Config) {
    let table = format!("store.{}", config.store.name());
    let handler_key = format!("{}.timeout", config.handler.path());
    let written = |key: &str| config.origin.is_written(key);
    let (ttl, lease, timeout, handler) = (
        written(&format!("{table}.ttl")),
        written(&format!("{table}.lease")),
        written(&format!("{table}.timeout")),
        written(&handler_key),
    );
    let exclusive = matches!((&config.store, &config.handler), (Store::Sqlite(_), Handler::Sql(_)));
    let mut limits = config.store.limits();
    let mut handler_timeout = config.handler.timeout();
    if !lease {
        let mut wanted = limits.lease.get();
        if timeout {
            wanted = wanted.max(limits.timeout.get().saturating_mul(3));
        }
        if exclusive {
            wanted = wanted.max(handler_timeout.get().saturating_mul(2));
        }
        if ttl {
            wanted = wanted.min(limits.ttl.get());
        }
        limits.lease = wanted.min(MOST_LEASE).into();
    }
    if !ttl {
        limits.ttl = limits.ttl.max(limits.lease);
    }
    if !timeout {
        limits.timeout = limits.timeout.min((limits.lease.get() / 3).into());
    }
    if exclusive && !handler && handler_timeout >= limits.lease {
        handler_timeout = (limits.lease.get() / 2).into();
        config.handler.set_timeout(handler_timeout);
    }
    config.store.set_limits(limits);
}

const MOST_LEASE: Duration = Duration::from_secs(12 * 3_600);

/// The longest message fits into what may be held.
fn message_bytes(config: &mut Config) {
    let Source::File(file) = &mut config.source else { return };
    let (longest, held) = (
        config.origin.is_written("source.file.max_message_bytes"),
        config.origin.is_written("pipeline.max_in_flight_bytes"),
    );
    let in_flight = &mut config.pipeline.max_in_flight_bytes;
    match (longest, held) {
        (true, false) => *in_flight = (*in_flight).max(file.max_message_bytes),
        (false, true) => file.max_message_bytes = file.max_message_bytes.min(*in_flight),
        _ => {}
    }
}

impl Store {
    fn set_limits(&mut self, limits: super::StoreLimits) {
        let (ttl, lease, timeout) = match self {
            Self::Redis(store) => (&mut store.ttl, &mut store.lease, &mut store.timeout),
            Self::Postgres(store) => (&mut store.ttl, &mut store.lease, &mut store.timeout),
            Self::Sqlite(store) => (&mut store.ttl, &mut store.lease, &mut store.timeout),
            Self::Memory(store) => (&mut store.ttl, &mut store.lease, &mut store.timeout),
        };
        (*ttl, *lease, *timeout) = (limits.ttl, limits.lease, limits.timeout);
    }
}

impl Handler {
    fn set_timeout(&mut self, timeout: HumanDuration) {
        *match self {
            Self::Http(handler) => &mut handler.timeout,
            Self::Exec(handler) => &mut handler.timeout,
            Self::Worker(handler) => &mut handler.timeout,
            Self::Sql(handler) => &mut handler.timeout,
            Self::Publish(PublishHandler::Rabbitmq(target)) => &mut target.timeout,
            Self::Publish(PublishHandler::Kafka(target)) => &mut target.timeout,
            Self::Publish(PublishHandler::Sqs(target)) => &mut target.timeout,
            Self::Stdout(handler) => &mut handler.timeout,
        } = timeout;
    }
}
