//! Turns the configuration's words into the core's: scope, key sources, limits, policies.

use std::time::Duration;

use onceward::pipeline::config::{self as core, BreakerConfig, Policies};
use onceward::retry::{Backoff, RetryPolicy};
use onceward::{Error, Fingerprinting, KeyExtractor, KeySource, PipelineConfig, Scope, retry};

use super::{Config, Handler, KeyPart, OrderBy};
use crate::config;
use crate::handlers::RESULT_LIMIT;

/// The scope.
///
/// # Errors
/// [`Error`] if the core refuses it; a checked configuration's is accepted.
pub(crate) fn scope(config: &Config) -> Result<Scope, Error> {
    Scope::parse(&config.scope)
}

/// What finds the key of a message, and of a text.
pub(crate) fn key_extractor(config: &Config, scope: &Scope) -> KeyExtractor {
    KeyExtractor::new(scope, key_sources(config))
}

/// The sources of the key.
pub(super) fn key_sources(config: &Config) -> Vec<KeySource> {
    config.key.from.iter().map(|source| key_source(source.parts())).collect()
}

/// One source: a part, or several as a composite.
pub(crate) fn key_source(parts: &[KeyPart]) -> KeySource {
    let source = |part: &KeyPart| match part {
        KeyPart::Header(name) => KeySource::Header(name.clone()),
        KeyPart::MessageId => KeySource::MessageId,
        KeyPart::Json(pointer) => KeySource::JsonPointer(pointer.clone()),
        KeyPart::Position => KeySource::Position,
        KeyPart::PayloadHash => KeySource::PayloadHash,
    };
    match parts {
        [part] => source(part),
        parts => KeySource::Composite(parts.iter().map(source).collect()),
    }
}

/// All limits and choices of the pipeline.
pub(crate) fn pipeline_config(config: &Config, until_empty: bool) -> PipelineConfig {
    let (limits, pipeline) = (config.limits(), &config.pipeline);
    PipelineConfig {
        lease: limits.lease.get(),
        ttl: limits.ttl.get(),
        store_timeout: limits.timeout.get(),
        concurrency: concurrency(config) as usize,
        adaptive_concurrency: pipeline.adaptive_concurrency,
        rate_limit: pipeline.rate_limit,
        max_batch: pipeline.max_batch as usize,
        claims_ahead: pipeline.claims_ahead as usize,
        lane_batch: pipeline.lane_batch as usize,
        transaction_batch: match &config.handler {
            Handler::Sql(sql) => sql.batch as usize,
            _ => 1,
        },
        max_in_flight: pipeline.max_in_flight as usize,
        max_waiting: pipeline.max_waiting.map(|messages| messages as usize),
        max_waiting_per_partition: pipeline.max_waiting_per_partition.map(|messages| messages as usize),
        breaker: BreakerConfig { enabled: pipeline.breaker, failing_keys: pipeline.breaker_keys },
        max_in_flight_bytes: usize::try_from(pipeline.max_in_flight_bytes.get()).unwrap_or(usize::MAX),
        max_message_bytes: pipeline
            .max_message_bytes
            .map(|bytes| usize::try_from(bytes.get()).unwrap_or(usize::MAX)),
        ordering: ordering(config),
        handler_timeout: handler_timeout(config),
        cancel_grace: pipeline.cancel_grace.get(),
        drain_timeout: pipeline.drain_timeout.get(),
        retry: retry_policy(&config.retry),
        policies: policies(&config.policy),
        fingerprint: match &config.key.fingerprint {
            config::FingerprintConfig::Json => Fingerprinting::Json,
            config::FingerprintConfig::Bytes => Fingerprinting::Bytes,
            config::FingerprintConfig::Off => Fingerprinting::Off,
            config::FingerprintConfig::Pointers(pointers) => Fingerprinting::Pointers(pointers.clone()),
        },
        mode: match config.mode {
            config::Mode::Enforce => core::Mode::Enforce,
            config::Mode::Observe => core::Mode::Observe,
        },
        // Nothing but a reply asks for a result.
        keep_results: config.policy.on_completed == config::OnCompleted::ReplayResult,
        max_result_bytes: RESULT_LIMIT,
        until_idle: until_empty,
        ..PipelineConfig::default()
    }
}

/// The number of handlers that run concurrently.
fn concurrency(config: &Config) -> u32 {
    match &config.handler {
        // A message that waits for a process would hold a claim meanwhile, and use up its time.
        Handler::Worker(worker) => config.pipeline.concurrency.min(worker.messages_at_once()),
        _ => config.pipeline.concurrency,
    }
}

/// A worker's time is kept by its handler, which knows when it begins: neither the wait for a process nor its start counts, each
/// of which may take its start timeout. That of a request for several messages is kept by its client: a run that the pipeline
/// cancels would be blamed for the others.
fn handler_timeout(config: &Config) -> Duration {
    let timeout = config.handler.timeout().get();
    match &config.handler {
        Handler::Worker(worker) => timeout
            .saturating_add(worker.start_timeout.get().saturating_mul(2))
            .saturating_add(config.pipeline.cancel_grace.get()),
        Handler::Http(http) if http.batch > 1 => timeout.saturating_add(config.pipeline.cancel_grace.get()),
        _ => timeout,
    }
}

fn ordering(config: &Config) -> core::Ordering {
    match (config.ordering(), &config.pipeline.order_by) {
        (config::Ordering::None, _) => core::Ordering::None,
        (config::Ordering::Partition, _) => core::Ordering::Partition,
        (config::Ordering::Key, Some(OrderBy::Source(source))) => {
            core::Ordering::By(key_source(source.parts()))
        }
        (config::Ordering::Key, Some(OrderBy::Broker) | None) => core::Ordering::BrokerKey,
    }
}

fn retry_policy(config: &config::RetryConfig) -> RetryPolicy {
    RetryPolicy {
        max_attempts: config.max_attempts,
        backoff: Backoff {
            initial: config.initial.get(),
            max: config.max.get(),
            jitter: match config.jitter {
                config::Jitter::None => retry::Jitter::None,
                config::Jitter::Full => retry::Jitter::Full,
                config::Jitter::Equal => retry::Jitter::Equal,
                config::Jitter::Decorrelated => retry::Jitter::Decorrelated,
            },
        },
    }
}

fn policies(config: &config::PolicyConfig) -> Policies {
    Policies {
        on_missing_key: match config.on_missing_key {
            config::OnMissingKey::DeadLetter => core::OnMissingKey::DeadLetter,
            config::OnMissingKey::Hash => core::OnMissingKey::Hash,
            config::OnMissingKey::Process => core::OnMissingKey::Process,
            config::OnMissingKey::Reject => core::OnMissingKey::Reject,
        },
        on_in_progress: match config.on_in_progress {
            config::OnInProgress::Hold => core::OnInProgress::Hold,
            config::OnInProgress::Park => core::OnInProgress::Park,
        },
        on_completed: match config.on_completed {
            config::OnCompleted::Ack => core::OnCompleted::Ack,
            config::OnCompleted::ReplayResult => core::OnCompleted::ReplayResult,
        },
        on_mismatch: match config.on_mismatch {
            config::OnMismatch::DeadLetter => core::OnMismatch::DeadLetter,
            config::OnMismatch::Ack => core::OnMismatch::Ack,
            config::OnMismatch::Process => core::OnMismatch::Process,
        },
        on_store_down: match config.on_store_down {
            config::OnStoreDown::Pause => core::OnStoreDown::Pause,
            config::OnStoreDown::Process => core::OnStoreDown::Process,
        },
        on_exhausted: match config.on_exhausted {
            config::OnExhausted::DeadLetter => core::OnExhausted::DeadLetter,
            config::OnExhausted::Park => core::OnExhausted::Park,
        },
        on_letter_refused: match config.on_letter_refused {
            config::OnLetterRefused::Park => core::OnLetterRefused::Park,
            config::OnLetterRefused::Drop => core::OnLetterRefused::Drop,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &str) -> Config {
        let base = "scope = 'a'\n[source.file]\npath = 'x'\n[key]\nfrom = ['json:/id', ['header:a', 'message-id']]\n\
                    [dead_letter]\nto = 'd'\n";
        Config::parse(&format!("{base}{more}"), &|_| None).unwrap()
    }

    #[test]
    fn every_limit_reaches_the_pipeline() {
        let config = parse(
            "[store.memory]\nttl = '2h'\nlease = '9s'\ntimeout = '3s'\n[handler.stdout]\ntimeout = '7s'\n[pipeline]\n\
             concurrency = 5\nmax_batch = 6\nclaims_ahead = 3\nlane_batch = 4\nmax_in_flight = 70\nmax_waiting = 80\n\
             max_waiting_per_partition = 9\nbreaker = false\nbreaker_keys = 7\nmax_in_flight_bytes = '1GiB'\nmax_message_bytes = '2MiB'\n\
             drain_timeout = '8s'\ncancel_grace = '9s'\nrate_limit = 2.5\nadaptive_concurrency = true\n\
             ordering = 'key'\norder_by = 'json:/c'\n[retry]\nmax_attempts = 11\ninitial = '12ms'\nmax = '13s'\n\
             jitter = 'decorrelated'\n",
        );
        let settings = pipeline_config(&config, true);
        settings.check().unwrap();
        let secs = Duration::from_secs;
        assert_eq!((settings.ttl, settings.lease, settings.store_timeout), (secs(7200), secs(9), secs(3)));
        assert_eq!((settings.handler_timeout, settings.drain_timeout), (secs(7), secs(8)));
        assert_eq!(settings.cancel_grace, secs(9));
        assert_eq!((settings.concurrency, settings.max_batch, settings.max_in_flight), (5, 6, 70));
        assert_eq!((settings.lane_batch, settings.adaptive_concurrency), (4, true));
        assert_eq!(settings.claims_ahead, 3);
        assert_eq!(settings.rate_limit, Some(2.5));
        assert_eq!((settings.max_in_flight_bytes, settings.until_idle), (1 << 30, true));
        assert_eq!(settings.max_message_bytes, Some(2 << 20));
        assert_eq!((settings.max_waiting, settings.max_waiting_per_partition), (Some(80), Some(9)));
        assert_eq!(settings.breaker, BreakerConfig { enabled: false, failing_keys: 7 });
        assert_eq!(settings.ordering, core::Ordering::By(KeySource::JsonPointer("/c".into())));
        let backoff = Backoff {
            initial: Duration::from_millis(12),
            max: secs(13),
            jitter: retry::Jitter::Decorrelated,
        };
        assert_eq!(settings.retry, RetryPolicy { max_attempts: 11, backoff });
    }

    #[test]
    fn the_largest_values_a_configuration_may_have_are_accepted_by_the_core() {
        let config = parse(
            "[store.memory]\nttl = '3650d'\nlease = '12h'\n[handler.stdout]\ntimeout = '12h'\n[pipeline]\n\
             concurrency = 65536\nmax_batch = 4096\nclaims_ahead = 65536\nlane_batch = 4096\nmax_in_flight = 1048576\ndrain_timeout = '1h'\n[retry]\n\
             max_attempts = 10000\ninitial = '24h'\nmax = '24h'\n",
        );
        pipeline_config(&config, false).check().unwrap();
    }

    #[test]
    fn fingerprints_and_the_policy_on_refused_letters_reach_the_pipeline() {
        let config = parse("[store.memory]\n[handler.stdout]\n[policy]\non_letter_refused = 'drop'\n");
        let settings = pipeline_config(&config, false);
        assert_eq!(settings.fingerprint, Fingerprinting::Json);
        assert_eq!(settings.policies.on_letter_refused, core::OnLetterRefused::Drop);
        for (text, expected) in [
            ("'bytes'", Fingerprinting::Bytes),
            ("'off'", Fingerprinting::Off),
            ("['json:/a']", Fingerprinting::Pointers(vec!["/a".into()])),
        ] {
            let base = "scope = 'a'\n[source.file]\npath = 'x'\n[key]\nfrom = ['json:/id']\n";
            let rest = "[dead_letter]\nto = 'd'\n[store.memory]\n[handler.stdout]\n";
            let text = format!("{base}fingerprint = {text}\n{rest}");
            let config = Config::parse(&text, &|_| None).unwrap();
            assert_eq!(pipeline_config(&config, false).fingerprint, expected);
        }
    }

    #[test]
    fn as_many_statements_share_a_transaction_as_the_handler_says() {
        let mut config = parse("[store.memory]\n[handler.stdout]\n");
        for (handler, together) in
            [(r#"{"statement": "SELECT 1"}"#, 1), (r#"{"statement": "SELECT 1", "batch": 12}"#, 12)]
        {
            // No store that every build has can run statements, so the handler is not read with the rest.
            config.handler = Handler::Sql(serde_json::from_str(handler).unwrap());
            assert_eq!(pipeline_config(&config, false).transaction_batch, together);
        }
    }

    #[test]
    fn a_request_for_several_messages_ends_before_its_runs_are_cancelled() {
        let limit = |batch: u32| {
            let http = format!("url = 'http://127.0.0.1/'\ntimeout = '3s'\nbatch = {batch}\n");
            let config =
                parse(&format!("[store.memory]\n[handler.http]\n{http}[pipeline]\ncancel_grace = '2s'\n"));
            pipeline_config(&config, false).handler_timeout
        };
        assert_eq!((limit(1), limit(2)), (Duration::from_secs(3), Duration::from_secs(5)));
    }

    #[test]
    fn the_start_of_a_worker_process_does_not_count_as_handler_time() {
        let config = parse(
            "[store.memory]\n[handler.worker]\ncommand = ['w']\ntimeout = '2s'\nstart_timeout = '5s'\n",
        );
        assert!(pipeline_config(&config, false).handler_timeout > Duration::from_secs(12));
    }

    #[test]
    fn no_more_messages_run_than_there_are_worker_processes() {
        let config = parse("[store.memory]\n[handler.worker]\ncommand = ['w']\nprocesses = 3\n");
        assert_eq!(pipeline_config(&config, false).concurrency, 3);
        let worker = "[store.memory]\n[handler.worker]\ncommand = ['w']\nprocesses = 3\n";
        let concurrency = |rest: &str| {
            let config = pipeline_config(&parse(&format!("{worker}{rest}")), false);
            config.check().unwrap();
            config.concurrency
        };
        assert_eq!(concurrency("in_flight = 20\nbatch = 10"), 600);
        assert_eq!(concurrency("in_flight = 4\nbatch = 1000"), 12_000);
        assert_eq!(concurrency("in_flight = 20\n[pipeline]\nconcurrency = 7"), 7);
        assert_eq!(concurrency("in_flight = 20\n[pipeline]\nmax_in_flight = 50"), 50);
    }

    #[test]
    fn a_nested_list_is_a_composite() {
        let config = parse("[store.memory]\n[handler.stdout]\n");
        let keys = key_extractor(&config, &scope(&config).unwrap());
        let composite = KeySource::Composite(vec![KeySource::Header("a".into()), KeySource::MessageId]);
        assert_eq!(keys.sources().collect::<Vec<_>>(), [&KeySource::JsonPointer("/id".into()), &composite]);
    }
}
