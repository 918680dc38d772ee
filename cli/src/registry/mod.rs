//! Maps a configuration to the parts of a pipeline: one function per adapter, behind that adapter's feature.
//!
//! ```text
//! [source.*]  ─▶ source.rs ──┐
//! [store.*]   ─▶ store.rs ───┤
//! [handler.*] ─▶ handler.rs ─┼─▶ build.rs ─▶ a pipeline, whatever its types
//! the rest    ─▶ settings.rs ┘
//! ```
//!
//! A new store: a table in `config/store.rs`, a feature, and one function in `store.rs`; if it is transactional, a
//! variant of `Inbox` as well. A new source: one function in `source.rs`, and one in `dead_letter.rs`. What an adapter needs
//! more than a few lines for has a file of its own.

mod build;
mod credentials;
mod dead_letter;
mod facts;
mod handler;
#[cfg(feature = "kafka")]
mod kafka;
mod letters;
mod outbox;
mod own_headers;
#[cfg(feature = "postgres")]
mod postgres;
mod publisher;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
mod settings;
mod source;
#[cfg(feature = "sqs")]
mod sqs;
mod store;

pub(crate) use build::build;
pub(crate) use dead_letter::open_dead_letters;
pub(crate) use facts::{Backlog, DeadLetterFacts, backlog, broker_advice, broker_backlog, dead_letter_facts};
pub(crate) use handler::{AnyHandler, check_statement, open_handler};
pub(crate) use letters::{Letters, open_letters};
pub(crate) use outbox::{ReadyRelay, check_outbox_target, describe_outbox_target, open_relay, outbox_status};
pub(crate) use settings::{key_source, scope};
pub(crate) use source::{file_config, open_source};
pub(crate) use store::{OpenStore, Purpose, file_to_come, migrate, missing_migrations, open_store};

use onceward::{Error, ErrorKind};

use crate::config::Config;

/// For a table that this build has no code for. `config::missing_feature` says so first, and better.
fn not_in_this_build(table: &str) -> Error {
    Error::new(ErrorKind::Config, format!("use [{table}]"), "this build of onceward does not have it")
}

/// What the parts are, in a few words without secrets, for logs.
pub(crate) fn describe_source(config: &Config) -> String {
    use crate::config::Source;
    match &config.source {
        Source::Rabbitmq(source) => format!("rabbitmq:{}", source.queue),
        Source::Kafka(source) => format!("kafka:{}", source.topics.join(",")),
        Source::Sqs(source) => format!("sqs:{}", source.queue_url.redacted()),
        Source::File(source) if source.is_standard_input() => "file:-".to_owned(),
        Source::File(source) => format!("file:{}", config.resolve(&source.path).display()),
    }
}

/// As [`describe_source`], for the store.
pub(crate) fn describe_store(config: &Config) -> String {
    use crate::config::Store;
    match &config.store {
        Store::Redis(store) => store.url.redacted(),
        Store::Postgres(store) => store.url.redacted(),
        Store::Sqlite(store) => format!("sqlite:{}", config.resolve(&store.path).display()),
        Store::Memory(_) => "memory".to_owned(),
    }
}
