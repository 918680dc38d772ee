//! Checks what configurations parse, to which values, and how these are shown.

use std::time::Duration;

use onceward_cli::config::{
    Guarantee, Handler, Jitter, KeyPart, KeySource, LogFormat, Mode, OnExhausted, OrderBy, Ordering,
    PublishTarget, Source,
};

use crate::examples::{CONTRACT, SOURCES, base_with, combinations, parse};

#[test]
fn the_example_of_the_contract_parses_to_what_it_says() {
    let config = parse(CONTRACT);
    assert_eq!(
        (config.scope.as_str(), config.guarantee, config.mode),
        ("billing", Guarantee::Deduplicated, Mode::Enforce)
    );
    let Source::Rabbitmq(source) = &config.source else { panic!("{:?}", config.source) };
    assert_eq!(source.url.expose(), "amqp://guest:guest@127.0.0.1:5672/%2f");
    let prefetch = |concurrency, seconds| source.prefetch(concurrency, Duration::from_secs(seconds));
    assert_eq!((source.prefetch, prefetch(16, 30), prefetch(1, 30)), (None, 256, 16));
    assert_eq!((prefetch(100, 30), prefetch(500, 30), prefetch(60_000, 30)), (1_024, 2_000, 65_535));
    // Sixteen handlers one after the other would take longer than 30 minutes.
    assert_eq!((prefetch(16, 112), prefetch(16, 113)), (256, 64));
    assert_eq!(config.limits().ttl.get().as_secs(), 7 * 86_400);
    assert_eq!(config.limits().timeout.get().as_secs(), 5);
    assert_eq!(
        config.key.from,
        [KeySource::Part(KeyPart::Header("idempotency-key".into())), KeySource::Part(KeyPart::MessageId)]
    );
    assert_eq!(config.handler.timeout().get().as_secs(), 30);
    assert_eq!((config.ordering(), &config.pipeline.order_by), (Ordering::Key, &Some(OrderBy::Broker)));
    assert_eq!(config.retry.jitter, Jitter::Full);
    assert_eq!(config.policy.on_exhausted, OnExhausted::DeadLetter);
    assert_eq!(
        (config.telemetry.listen.map(|at| at.port()), config.telemetry.log),
        (Some(9464), LogFormat::Text)
    );
}

#[test]
fn every_source_store_and_handler_parses_and_shows_as_toml_that_parses() {
    let mut seen = 0;
    for source in combinations() {
        let config = parse(&source);
        let shown = config.to_toml().unwrap();
        let again = parse(&shown);
        assert_eq!(again.to_toml().unwrap(), shown, "shown differs once it is read again");
        assert_eq!((again.source.name(), again.store.name()), (config.source.name(), config.store.name()));
        seen += 1;
    }
    assert_eq!(seen, 8 * (4 * 10 - 2));
}

#[test]
fn what_is_left_out_depends_on_the_source() {
    let of = |source: &str| {
        parse(&format!("scope = 'a'\n{source}[store.memory]\n[handler.stdout]\n[dead_letter]\nto = 'd'\n"))
    };
    let kafka = of(SOURCES[1]);
    assert_eq!(kafka.ordering(), Ordering::Partition);
    let names: Vec<_> = kafka.key.from.iter().flat_map(KeySource::parts).map(KeyPart::to_string).collect();
    assert_eq!(names, ["header:idempotency-key", "message-id", "position"]);
    assert_eq!(of(SOURCES[0]).ordering(), Ordering::None);
    assert_eq!(of(SOURCES[2]).ordering(), Ordering::None);
    let fifo = of(SOURCES[3]);
    assert_eq!((fifo.ordering(), fifo.pipeline.order_by), (Ordering::Key, Some(OrderBy::Broker)));
}

#[test]
fn composites_and_dotted_properties_read_as_they_are_meant() {
    let config = parse(&base_with("['json:/id']", "[['json:/tenant', 'json:/id'], 'payload-hash']"));
    assert_eq!(config.key.from[0].parts().len(), 2);
    assert_eq!(config.key.from[1], KeySource::Part(KeyPart::PayloadHash));

    let config = parse(&combinations().find(|source| source.contains("source.kafka")).unwrap());
    let Source::Kafka(kafka) = &config.source else { panic!("{:?}", config.source) };
    let properties: Vec<_> = kafka.properties.expose().collect();
    assert_eq!(properties, [("enable.partition.eof", "false"), ("session.timeout.ms", "60000")]);

    let config = parse(&combinations().find(|source| source.contains("publish.kafka")).unwrap());
    assert!(matches!(config.handler, Handler::Publish(PublishTarget::Kafka(_))));
}

#[test]
fn what_is_shown_is_the_effective_configuration() {
    let shown = parse(&base_with("['json:/id']", "['json:/$${id}']")).to_toml().unwrap();
    for line in [
        "guarantee = \"deduplicated\"",
        "ttl = \"8d\"",
        "from = [\"json:/$${id}\"]",
        "concurrency = 16",
        "ordering = \"none\"",
        "max_in_flight_bytes = \"256MiB\"",
        "on_store_down = \"pause\"",
        "jitter = \"full\"",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
}

/// What people copy has to work: the configurations in the README and in `deploy/` parse.
#[test]
fn the_configurations_that_are_published_parse() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let read = |name: &str| std::fs::read_to_string(format!("{root}/{name}")).expect(name);
    let readme = read("README.md");
    let (_, after) = readme.split_once("```toml\n").expect("a configuration");
    parse(after.split_once("```").expect("its end").0);
    let manifest = read("deploy/kubernetes.yaml");
    let (_, after) = manifest.split_once("onceward.toml: |\n").expect("a configuration");
    parse(after.split_once("---").expect("its end").0);
}
