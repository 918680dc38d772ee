//! Registers the adapters: one line for each. No other file of the program names a broker or a store.
//!
//! An adapter's crate has a module `plugin` with the tables it offers: a broker `Source`, `Target` and `Relay`, a store `Store`. A new
//! adapter is a dependency and a feature in `Cargo.toml`, and one line here.

use onceward_plugin::value::HumanDuration;
use onceward_plugin::{RelayPlugin, SourcePlugin, StorePlugin, TargetPlugin};

use crate::config::adapters::register;

register! {
    brokers {
        rabbitmq: Rabbitmq = onceward_rabbitmq if "rabbitmq",
        kafka: Kafka = onceward_kafka if "kafka",
        sqs: Sqs = onceward_sqs if "sqs",
        pubsub: Pubsub = onceward_pubsub if "pubsub",
    }
    sources {
        file: File = onceward_file,
    }
    stores {
        redis: Redis = onceward_redis if "redis",
        postgres: Postgres = onceward_postgres if "postgres",
        sqlite: Sqlite = onceward_sqlite if "sqlite",
    }
    internal stores {
        memory: Memory = onceward_plugin::MemoryTable,
    }
}
