//! Kafka and the stdout handler, whose lines are read from a file.

use onceward_test_servers::kafka::Kafka;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;

use crate::stage::Stage;

/// By the keys of the records.
const BY_KEYS: &str = "[pipeline]\nordering = \"key\"\norder_by = \"broker\"\n";

/// A run reads the topic from its start, as a group of its own.
fn source(stage: &Stage, broker: &Kafka, topic: &str) -> String {
    format!(
        "[source.kafka]\nbrokers = [\"{}\"]\ntopics = [\"{topic}\"]\ngroup = \"{}\"\n\
         [source.kafka.properties]\n\"auto.offset.reset\" = \"earliest\"\n[handler.stdout]\n",
        broker.bootstrap(),
        stage.name("group"),
    )
}

pub(crate) fn measure(stage: &Stage) {
    let (broker, redis, postgres) = (Kafka::start(), Redis::start(), Postgres::start());
    let messages = stage.figures.messages(200_000);
    let topic = stage.topic(&broker, messages);
    let once = |store: &str, order: &str| {
        let file = stage.configuration(&format!("{}{store}{order}", source(stage, &broker, &topic)));
        if store.contains("postgres") {
            stage.execute(&["migrate", &file]);
        }
        stage.run(&file).rate(messages)
    };
    for (name, store) in [("redis", Stage::redis(&redis)), ("postgres", Stage::postgres(&postgres))] {
        let (mut by_keys, mut by_partitions) = (Vec::new(), Vec::new());
        for _ in 0..stage.figures.rounds(5) {
            by_keys.push(once(&store, BY_KEYS));
            by_partitions.push(once(&store, ""));
        }
        let part = format!("kafka + {name}, stdout");
        let variants = [("order of partitions", &by_partitions[..])];
        stage.figures.report(&part, messages, ("order of keys", &by_keys), &variants);
    }
}
