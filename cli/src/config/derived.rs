//! Defaults that follow from what is written: a value that a user sets never makes an untouched default invalid.
//!
//! Only keys that are not written change. What contradicts itself afterwards was written so, on both sides, and
//! [`check`](super::check) refuses it.

use std::time::Duration;

use onceward::pipeline::config as core;

use super::{Config, Handler, HumanDuration, OrderBy, Ordering};

/// Fills in every default that depends on a written value.
pub(super) fn derive(config: &mut Config) {
    ordering(config);
    pipeline(config);
    retry(config);
    leases(config);
    message_bytes(config);
}

fn ordering(config: &mut Config) {
    let facts = config.source.plugin().facts();
    let pipeline = &mut config.pipeline;
    if pipeline.ordering.is_none() {
        pipeline.ordering = Some(match facts.default_ordering {
            // Retried messages give up their place in the order.
            _ if facts.reorders_retries => Ordering::None,
            _ if pipeline.order_by.is_some() => Ordering::Key,
            core::Ordering::Partition => Ordering::Partition,
            core::Ordering::BrokerKey | core::Ordering::By(_) => Ordering::Key,
            core::Ordering::None => Ordering::None,
        });
    }
    if pipeline.ordering == Some(Ordering::Key) && facts.has_record_keys {
        pipeline.order_by.get_or_insert(OrderBy::Broker);
    }
}

/// `concurrency`, `max_in_flight`, `max_batch` and `handler.sql.batch` bound each other; as many messages run as the handler takes
/// at once.
fn pipeline(config: &mut Config) {
    let written = |key: &str| config.origin.is_written(key);
    let (concurrency, in_flight, batch) =
        (written("pipeline.concurrency"), written("pipeline.max_in_flight"), written("pipeline.max_batch"));
    let shared = match &config.handler {
        Handler::Sql(sql) => sql.batch,
        _ => 1,
    };
    let shared_written = written("handler.sql.batch");
    let at_once = match &config.handler {
        Handler::Worker(worker) if worker.in_flight > 1 || worker.batch > 1 => worker.messages_at_once(),
        // While one request is under way the next one is made.
        Handler::Http(http) if http.batch > 1 => http.batch.saturating_mul(2),
        _ => 1,
    };
    let pipeline = &mut config.pipeline;
    if !concurrency {
        pipeline.concurrency = pipeline.concurrency.max(at_once.min(65_536));
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

/// `ttl` ≥ `lease` > `timeout`; where the store has a single writer, `lease` > `handler.sql.timeout` as well.
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
    let has_single_writer = config.store.plugin().facts().has_single_writer;
    let exclusive = has_single_writer && matches!(config.handler, Handler::Sql(_));
    let mut limits = config.limits();
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
    config.store.plugin_mut().set_limits(limits);
}

const MOST_LEASE: Duration = Duration::from_secs(12 * 3_600);

/// The longest message fits into what may be held.
fn message_bytes(config: &mut Config) {
    let key = format!("source.{}.max_message_bytes", config.source.name());
    let (longest, held) =
        (config.origin.is_written(&key), config.origin.is_written("pipeline.max_in_flight_bytes"));
    let Some(max_message_bytes) = config.source.plugin_mut().max_message_bytes() else { return };
    let in_flight = &mut config.pipeline.max_in_flight_bytes;
    match (longest, held) {
        (true, false) => *in_flight = (*in_flight).max(*max_message_bytes),
        (false, true) => *max_message_bytes = (*max_message_bytes).min(*in_flight),
        _ => {}
    }
}

impl Handler {
    fn set_timeout(&mut self, timeout: HumanDuration) {
        *match self {
            Self::Http(handler) => &mut handler.timeout,
            Self::Exec(handler) => &mut handler.timeout,
            Self::Worker(handler) => &mut handler.timeout,
            Self::Sql(handler) => &mut handler.timeout,
            Self::Publish(target) => return target.plugin_mut().set_timeout(timeout),
            Self::Stdout(handler) => &mut handler.timeout,
        } = timeout;
    }
}
