//! Refuses values outside their limits and values that contradict each other, naming both keys and the fix.

mod agreement;
mod handler;
mod own_headers;
mod plugins;
mod rules;
mod secret;

use onceward::Scope;

use onceward_plugin::value::HumanDuration;

use super::context::Contexts;
use super::document::Config;
use rules::{Checked, DAY, HOUR, MILLISECOND, address, duration, text, url, within};

/// Every check, in the order of the file; the first that fails is the answer.
pub(super) fn check(config: &Config) -> Checked {
    let contexts = Contexts::of(config);
    scope(config)?;
    plugins::source(config, &contexts)?;
    plugins::store(config, &contexts)?;
    handler::check(config)?;
    plugins::handler(config, &contexts)?;
    pipeline(config)?;
    retry(config)?;
    if let Some(dead_letter) = &config.dead_letter {
        address(config, "dead_letter.to", &dead_letter.to)?;
    }
    plugins::outbox(config, &contexts)?;
    token(config)?;
    if let Some(otlp) = &config.telemetry.otlp {
        url(config, "telemetry.otlp", otlp, &["http", "https"])?;
        let has_login = url::Url::parse(otlp.expose())
            .is_ok_and(|url| !url.username().is_empty() || url.password().is_some());
        if has_login && onceward_plugin::check::is_remote(otlp, &["http"]) {
            return Err(config.refuse(
                "telemetry.otlp",
                "sends a login to another host without TLS",
                "write https://",
            ));
        }
    }
    agreement::check(config)?;
    own_headers::check(config)?;
    plugins::exposures(config, &contexts)
}

fn token(config: &Config) -> Checked {
    let telemetry = &config.telemetry;
    secret::secret(config, "telemetry.token", telemetry.token.as_ref(), telemetry.token_file.as_deref())?;
    let given = [("token", telemetry.token.is_some()), ("token_file", telemetry.token_file.is_some())];
    if let Some((name, _)) = given.into_iter().find(|(_, is_given)| *is_given && telemetry.listen.is_none()) {
        return Err(config.refuse(
            &format!("telemetry.{name}"),
            "is given without telemetry.listen, so that there is no page that asks for it",
            "add listen, or remove it",
        ));
    }
    Ok(())
}

fn scope(config: &Config) -> Checked {
    text(config, "scope", &config.scope)?;
    Scope::parse(&config.scope).map(drop).map_err(|_| {
        let fix = "write at most 128 printable ASCII characters without spaces";
        config.refuse("scope", "is no usable name", fix)
    })
}

fn pipeline(config: &Config) -> Checked {
    let pipeline = &config.pipeline;
    within(config, "pipeline.concurrency", pipeline.concurrency, 1..=65_536)?;
    within(config, "pipeline.max_in_flight", pipeline.max_in_flight, 1..=1_048_576)?;
    for (name, value) in [
        ("pipeline.max_waiting", pipeline.max_waiting),
        ("pipeline.max_waiting_per_partition", pipeline.max_waiting_per_partition),
    ] {
        if let Some(value) = value {
            within(config, name, value, 1..=1 << 24)?;
        }
    }
    within(config, "pipeline.breaker_keys", pipeline.breaker_keys, 0..=10_000)?;
    if pipeline.rate_limit.is_some_and(|rate| !(0.001..=1_000_000.0).contains(&rate)) {
        return Err(config.refuse(
            "pipeline.rate_limit",
            "is out of range",
            "write how many handlers may start per second, from 0.001 to 1000000",
        ));
    }
    within(config, "pipeline.max_batch", pipeline.max_batch, 1..=4_096)?;
    within(config, "pipeline.claims_ahead", pipeline.claims_ahead, 0..=65_536)?;
    within(config, "pipeline.lane_batch", pipeline.lane_batch, 1..=4_096)?;
    duration(config, "pipeline.drain_timeout", pipeline.drain_timeout, HumanDuration::from_secs(0)..=HOUR)?;
    duration(config, "pipeline.cancel_grace", pipeline.cancel_grace, HumanDuration::from_secs(0)..=HOUR)?;
    if pipeline.max_in_flight_bytes.get() == 0 {
        return Err(config.refuse(
            "pipeline.max_in_flight_bytes",
            "is zero",
            r#"write a size such as "256MiB""#,
        ));
    }
    if pipeline.max_message_bytes.is_some_and(|bytes| bytes.get() == 0) {
        return Err(config.refuse(
            "pipeline.max_message_bytes",
            "is zero, so that no message could be handled",
            r#"write a size such as "16MiB", or leave it out"#,
        ));
    }
    if pipeline.max_in_flight < pipeline.concurrency {
        return Err(config.refuse(
            "pipeline.max_in_flight",
            "is less than pipeline.concurrency, so that many handlers could never run",
            "raise max_in_flight or lower concurrency",
        ));
    }
    if pipeline.max_batch > pipeline.max_in_flight {
        return Err(config.refuse(
            "pipeline.max_batch",
            "is more than pipeline.max_in_flight, so no batch could ever be full",
            "lower max_batch or raise max_in_flight",
        ));
    }
    Ok(())
}

fn retry(config: &Config) -> Checked {
    let retry = &config.retry;
    within(config, "retry.max_attempts", retry.max_attempts, 1..=10_000)?;
    duration(config, "retry.initial", retry.initial, MILLISECOND..=DAY)?;
    duration(config, "retry.max", retry.max, MILLISECOND..=DAY)?;
    if retry.initial > retry.max {
        return Err(config.refuse("retry.initial", "is longer than retry.max", "lower initial or raise max"));
    }
    Ok(())
}
