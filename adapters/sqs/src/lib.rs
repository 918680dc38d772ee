//! SQS source and publisher for [`onceward`]: visibility kept alive, FIFO groups, batched deletes.
//!
//! | type | purpose |
//! |---|---|
//! | [`SqsConsumer`] | delivers the messages of a queue to a pipeline and keeps them invisible until they are settled |
//! | [`SqsPublisher`] | sends dead letters and outgoing messages; SQS has stored them when `publish` returns |
//! | [`SqsConfig`] | endpoint ([`SqsEndpoint`]) and queue options ([`SqsQueueConfig`]) |
//! | [`SqsQueueStatus`] | attributes and message counts of a queue, read without changing anything |
//!
//! Consumer and publisher are built from a configuration (`open`) or from the caller's client (`from_client`).
//!
//! Key sources: `message-id` is the producer's id for dead letters and messages of [`SqsPublisher`], SNS's id if the SNS
//! envelope is removed, and SQS's id otherwise. Message attributes are headers, as are `sqs-message-deduplication-id`,
//! `sqs-sequence-number` and `sqs-receive-count`.
//!
//! The crate's README lists the guarantees, the limits and the settings of the queue.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use onceward::{DeadLetters, Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn};
//! use onceward_sqs::{SqsConfig, SqsConsumer, SqsEndpoint, SqsPublisher};
//!
//! async fn charge(_app: (), message: Message) -> Handled {
//!     println!("{} bytes", message.payload().len());
//!     Ok(())
//! }
//!
//! let orders = SqsConsumer::open(SqsConfig::new("https://sqs.eu-west-1.amazonaws.com/123456789012/orders")).await?;
//! let letters = SqsPublisher::open(SqsEndpoint::default()).await?;
//! let dead_letters = DeadLetters::new(Arc::new(letters), "https://sqs.eu-west-1.amazonaws.com/123456789012/dead");
//! let pipeline = Pipeline::builder(Scope::parse("billing")?, orders, Arc::new(MemoryStore::new()))
//!     .keys([KeySource::Header("idempotency-key".into()), KeySource::MessageId])
//!     .dead_letters(dead_letters)
//!     .handler(handler_fn((), charge))?;
//! pipeline.run(Default::default()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Module layout
//!
//! `config`, `consumer`, `acker`, `publisher`, `message`, `inspect` and `error` have the same roles as in the other broker
//! adapters. `connection` builds clients, `receive` polls the queue, `settle` keeps the receipt handles of unsettled
//! deliveries, and `format` converts attributes, envelopes and FIFO ids.

mod acker;
mod config;
mod connection;
mod consumer;
mod error;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod inspect;
mod message;
#[cfg(feature = "plugin")]
pub mod plugin;
mod publisher;
mod receive;
mod settle;

/// The client crate, in the version whose `Client` `from_client` takes.
pub use aws_sdk_sqs;

pub use config::{SqsConfig, SqsQueueConfig};
pub use connection::endpoint::SqsEndpoint;
pub use consumer::SqsConsumer;
pub use inspect::SqsQueueStatus;
pub use publisher::SqsPublisher;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct SqsReadme;
