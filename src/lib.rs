//! Idempotent consumer middleware: each message has its effect once, even if the broker redelivers it.
//!
//! Every broker delivers *at least once*: a producer retries after a lost confirm, a consumer dies after the effect and before
//! the ack. Onceward claims the idempotency key of each message under a fenced lease, runs your handler, records the
//! completion, and only then acks.
//!
//! # A complete program
//!
#![cfg_attr(feature = "testing", doc = "```")]
#![cfg_attr(not(feature = "testing"), doc = "```ignore")]
//! use std::sync::Arc;
//!
//! use onceward::testing::{MemoryBroker, MemoryPublisher};
//! use onceward::{DeadLetters, Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn};
//!
//! async fn charge(_app: (), message: Message) -> Handled {
//!     println!("charge {}", String::from_utf8_lossy(message.payload()));
//!     Ok(())
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), onceward::Error> {
//!     // In your program: a consumer of onceward-rabbitmq, -kafka, -sqs, -pubsub or -file.
//!     let broker = MemoryBroker::finite();
//!     for order in ["4711", "4712", "4711"] {
//!         broker.publish(Message::builder(order).header("idempotency-key", order));
//!     }
//!     // In your program: a store of onceward-redis, -postgres or -sqlite, and a publisher of the broker's crate.
//!     let store = Arc::new(MemoryStore::new());
//!     let letters = DeadLetters::new(Arc::new(MemoryPublisher::new()), "orders.dead");
//!
//!     let pipeline = Pipeline::builder(Scope::parse("billing")?, broker.consumer(), store)
//!         .keys([KeySource::Header("idempotency-key".into())])
//!         .dead_letters(letters)
//!         .handler(handler_fn((), charge))?;
//!     // Cancel this token to drain and stop; this source ends by itself.
//!     let summary = pipeline.run(Default::default()).await?;
//!     assert_eq!((summary.received(), summary.handled(), summary.duplicates()), (3, 2, 1));
//!     Ok(())
//! }
//! ```
//!
//! A consumer loop of your own wraps the effect in one call: [`Deduplicator::once`].
//!
//! # The picture
//!
//! ```text
//!  broker ──deliveries──▶ intake ──▶ dispatch ──▶ claim → handle → complete → settle ──acks──▶ broker
//!                         key,       lanes,          │       │        │
//!                         fingerprint retries        ▼       ▼        ▼
//!                                                  store  handler   store ── failed for good ──▶ dead letters
//! ```
//!
//! The order *claim → handle → complete → settle* cannot be changed: nothing is acked before its record is durable.
//!
//! # Terms
//!
//! | term | is |
//! |---|---|
//! | delivery | one hand-over of a message by the broker; see [`Delivery`](adapter::Delivery) |
//! | idempotency key | identifies the deliveries of the same message: [`Key`], taken by a [`KeySource`] |
//! | scope | the consumer that the key belongs to: [`Scope`] |
//! | claim | the exclusive right to run the handler for a key, held under a *lease* by an *owner token* |
//! | fence | a number that grows with every claim of a key; give it to systems that can refuse a late writer |
//! | completed | the durable record that the effect has happened; it lives for the TTL |
//! | dead letter | the message as it was, published when it has failed for good: [`DeadLetters`] |
//! | settle | acknowledge a delivery to the broker, return it for a retry, or reject it |
//!
//! # Guarantees
//!
//! | level | needs | promise |
//! |---|---|---|
//! | [`Deduplicated`] | any [`Store`] | one effect per scope and key in the TTL, unless the process dies, or loses its lease, between effect and completion; that is counted as `suspected_double_effects` where it can be known |
//! | [`EffectivelyOnce`] | a [`TransactionalStore`]: the effect is in the transaction that records its completion | exactly one committed effect per scope and key in the TTL, whatever is killed |
//!
//! # What it does not do
//!
//! It is no broker, no workflow engine and no stream processor. It does not cover effects outside the transaction, duplicates
//! that arrive after the TTL, or two producers that use different keys for the same thing. It does not block for you: the
//! handlers of a round share a task, so a handler must not block its thread.
//!
//! # Chapters
//!
#![cfg_attr(
    all(doc, feature = "testing"),
    doc = "[Installation](guide::install) · [choosing a key](guide::keys) · [TTL, lease and timeouts](guide::times) · \
[lifecycle of a key and of a delivery](guide::lifecycle) · [transactions and the outbox](guide::transactions) · \
[testing your handler](guide::testing) · [writing a store](guide::writing_a_store) · \
[writing a broker adapter](guide::writing_a_broker) · [migrating an existing table](guide::migrating) · \
[comparison](guide::comparison) · [deployment and upgrades](guide::deployment) · [questions](guide::faq)"
)]
#![cfg_attr(
    not(all(doc, feature = "testing")),
    doc = "The guide is in `docs/guide`, and in this documentation where it is built with the feature `testing`."
)]
//!
//! The root has what a program with a pipeline names. What brokers and stores implement is in [`adapter`], and the records of a
//! store are in [`store`].
//!
//! Crates: `onceward-rabbitmq`, `onceward-kafka`, `onceward-sqs` and `onceward-file` are sources and publishers;
//! `onceward-redis`, `onceward-postgres` and `onceward-sqlite` are stores; `onceward-cli` is the program. Runnable examples are
//! in the repository's folder `examples`.

#![warn(missing_debug_implementations)]

mod active_claim;
pub mod adapter;
mod cancellation;
mod checkpoint;
mod coalesce;
mod consumer;
pub mod dead_letter;
mod delivery;
mod error;
mod extract;
#[cfg_attr(not(feature = "failpoints"), doc(hidden))]
pub mod failpoints;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
// Documentation only: the chapters need the feature for their examples.
#[cfg(all(any(doc, doctest), feature = "testing"))]
pub mod guide;
mod handler;
mod headers;
mod hosts;
mod janitor;
mod key;
mod letter_builder;
mod message;
mod once;
pub mod outbox;
pub mod own_headers;
pub mod pipeline;
#[cfg(unix)]
mod private_file;
mod publisher;
mod replies;
pub mod retry;
pub mod store;
mod tag;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub mod telemetry;

pub use cancellation::Cancellation;
pub use dead_letter::DeadLetters;
pub use error::{Error, ErrorKind};
pub use extract::{KeyExtractor, KeySource, KeyText};
#[cfg(feature = "testing")]
pub use handler::TestRun;
pub use handler::{
    FnHandler, Handled, Handler, HandlerError, HandlerFn, IntoReply, ResultExt, TxFn, TxHandler, TxHandlerFn,
    Verdict, handler, handler_fn, tx_handler,
};
#[cfg(feature = "tower")]
pub use handler::{ServiceHandler, tower_handler};
pub use janitor::{Janitor, purge_expired};
pub use key::{Fingerprint, Fingerprinting, Key, KeyError, MAX_KEY_BYTES, Scope};
pub use message::{Message, MessageBuilder, Position};
pub use once::{Deduplicator, ExhaustedKey, HeldClaim, Once, OnceConfig, OnceError};
pub use own_headers::{HeaderTrust, OwnHeaders, OwnSecrets};
pub use pipeline::config::PipelineConfig;
pub use pipeline::{Deduplicated, EffectivelyOnce, Pipeline, PipelineBuilder, Summary};
pub use publisher::{GatheredPublisher, Outgoing, Publisher};
pub use store::{MemoryStore, SharedStore, Store, TransactionalStore};

/// The name of this version, as recorded in stores and printed by the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(all(doctest, feature = "testing"))]
#[doc = include_str!("../README.md")]
struct Readme;
