//! The whole program, run as its users run it, and killed, stopped, starved and misconfigured.
//!
//! | file | story |
//! |---|---|
//! | `quickstart.rs` | the first run, the second, and those that were killed in the middle |
//! | `transactions.rs` | the effect in the completion's transaction, under kills |
//! | `failures.rs` | handlers that fail, once, always, or together with the whole process |
//! | `outages/` | an outage of each component: log lines, alerts and runbooks |
//! | `handler_outages.rs` | handlers that are not available for a while, behind each broker |
//! | `redrive.rs` | dead letters that go back to their source, by the program's own command and by hand |
//! | `letters/` | dead letters that operators list, show, redrive, correct and purge, on each broker and in files |
//! | `leases.rs` | handlers that outlast their lease, processes that are paused beyond it |
//! | `order.rs` | order within a key, through failures and kills |
//! | `crash_points.rs` | death at every step of the protocol |
//! | `bad_input.rs` `replaced_files.rs` | lines that are no messages, and files that are no longer the same |
//! | `configuration.rs` `secrets.rs` | mistakes in a configuration, and secrets of it that are never printed |
//! | `round_trips.rs` | round trips to the store of a message that comes alone |
//! | `bench.rs` | measurements on each broker, which leave nothing behind |
//! | `telemetry/` | traces that cross all brokers and reach all handlers; the events that change each metric |
//! | `shutdown.rs` | signals |
//! | `stalled.rs` | SIGTERM while a source or a store is silent |
//! | `store_trouble.rs` | a database that is locked or cannot be written |
//! | `lying_servers.rs` | servers and handlers that give answers no real one gives: the program survives, in little memory |
//! | `pair.rs` | what two programs on one source do, killed in turn |
//! | `office.rs` | effects and events in one database, and relays that send the events |
//! | `kafka/` | Kafka topics, with Redis: members that join, leave, are paused and killed, a killed broker |
//! | `rabbitmq/` | RabbitMQ queues, with Redis and with SQLite: kills, outages, the five classic duplicates, trouble in Redis |
//! | `sqs/` | SQS queues, standard and FIFO, with Redis and with Postgres: kills, groups that fail, handlers of ten times the visibility |
//! | `pubsub/` | Pub/Sub subscriptions, ordered and not, with Redis and with Postgres: kills, cut and half-open connections, restarts, long handlers, dead letters |
//! | `postgres/` | the same with the keys, and the effects, in Postgres: kills, restarts, killed backends, read-only, rivals |
//! | `release.rs` | the program that people run has no crash points |
//!
//! `ONCEWARD_TEST_KILLS` sets how often the tests that kill at random do so, `ONCEWARD_TEST_SEED` repeats their choices.

mod bad_input;
mod bench;
mod configuration;
mod crash_points;
mod failures;
mod handler_outages;
mod kafka;
mod leases;
mod letters;
mod lying_servers;
mod office;
mod order;
mod outages;
mod pair;
mod postgres;
mod pubsub;
mod quickstart;
mod rabbitmq;
mod redrive;
mod release;
mod replaced_files;
mod round_trips;
mod secrets;
mod shutdown;
mod sqs;
mod stage;
mod stalled;
mod store_trouble;
mod telemetry;
mod transactions;
