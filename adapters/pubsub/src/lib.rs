//! Google Cloud Pub/Sub source and publisher for [`onceward`]: leases kept alive, ordering keys, exactly-once acks.
//!
//! | type | purpose |
//! |---|---|
//! | [`PubsubConsumer`] | delivers the messages of a subscription to a pipeline and keeps their leases until they are settled |
//! | [`PubsubPublisher`] | publishes dead letters and outgoing messages; Pub/Sub has stored them when `publish` returns |
//! | [`PubsubConfig`] | endpoint ([`PubsubEndpoint`], [`PubsubCredentials`]) and options of the subscription ([`PubsubSubscriptionConfig`]) |
//! | [`PubsubSubscriptionStatus`] | attributes of a subscription, read without changing anything |
//!
//! Consumer and publisher are built from a configuration (`open`) or from the caller's client (`from_client`).
//!
//! Key sources: `message-id` is the producer's id for dead letters and messages of [`PubsubPublisher`], and Pub/Sub's id
//! otherwise. Attributes are headers, as are `pubsub-message-id`, `pubsub-publish-time`, `pubsub-ordering-key` and, with a
//! dead-letter policy, `pubsub-delivery-attempt`.
//!
//! The crate's README lists the guarantees, the limits and the settings of the subscription.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use onceward::{DeadLetters, Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn};
//! use onceward_pubsub::{PubsubConfig, PubsubConsumer, PubsubEndpoint, PubsubPublisher};
//!
//! async fn charge(_app: (), message: Message) -> Handled {
//!     println!("{} bytes", message.payload().len());
//!     Ok(())
//! }
//!
//! let orders = PubsubConsumer::open(PubsubConfig::new("projects/shop/subscriptions/orders")).await?;
//! let letters = PubsubPublisher::open(PubsubEndpoint::default()).await?;
//! let dead_letters = DeadLetters::new(Arc::new(letters), "projects/shop/topics/dead");
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
//! adapters. `connection` builds clients, `receive` reads the stream, `settle` keeps the handles of unsettled deliveries,
//! and `format` converts headers and attributes.

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

/// The client crate, in the version whose `Subscriber` and `BasePublisher` `from_client` takes.
pub use google_cloud_pubsub;

pub use config::{PubsubConfig, PubsubSubscriptionConfig};
pub use connection::endpoint::{PubsubCredentials, PubsubEndpoint};
pub use consumer::PubsubConsumer;
pub use inspect::PubsubSubscriptionStatus;
pub use publisher::PubsubPublisher;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct PubsubReadme;
