//! RabbitMQ source and publisher for [`onceward`]: safe acknowledgements, reconnection, confirmed dead letters.
//!
//! | type | purpose |
//! |---|---|
//! | [`RabbitmqConsumer`] | delivers the messages of a queue to a pipeline; reconnects and resubscribes |
//! | [`RabbitmqLetters`] | reads a queue of dead letters once, for tools |
//! | [`RabbitmqPublisher`] | publishes dead letters and outgoing messages, confirmed by the broker |
//! | [`RabbitmqReplies`] | sends results of messages to their `reply_to` |
//! | [`RabbitmqConfig`] | connection ([`RabbitmqEndpoint`]) and queue options ([`RabbitmqQueueConfig`]) |
//! | [`RabbitmqClient`] | the caller's own connections or channel, for `from_client` |
//! | [`RabbitmqQueueStatus`] | message and consumer counts of a queue, read without changing anything |
//!
//! The crate's README lists the guarantees, the limits and the policies to set on the broker.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use onceward::{DeadLetters, Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn};
//! use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqEndpoint, RabbitmqPublisher};
//!
//! async fn charge(_app: (), message: Message) -> Handled {
//!     println!("{} bytes", message.payload().len());
//!     Ok(())
//! }
//!
//! let url = "amqps://user:password@rabbit.example/%2f";
//! let orders = RabbitmqConsumer::open(RabbitmqConfig::new(url, "orders")).await?;
//! let letters = RabbitmqPublisher::open(RabbitmqEndpoint::new(url)).await?;
//! let pipeline = Pipeline::builder(Scope::parse("billing")?, orders, Arc::new(MemoryStore::new()))
//!     .keys([KeySource::MessageId])
//!     .dead_letters(DeadLetters::new(Arc::new(letters), "orders.dead"))
//!     .handler(handler_fn((), charge))?;
//! pipeline.run(Default::default()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Module layout
//!
//! `config`, `consumer`, `acker`, `publisher`, `message`, `inspect` and `error` have the same roles as in the other broker
//! adapters. `connection` opens connections, `subscription` keeps one subscribed, `settle` decides which acknowledgement
//! frames are sent, `publish` is the confirmed publishing path, `delay_queues` delays redelivery on the broker, `format`
//! converts AMQP properties and headers, and `sanitize` rewrites inbound frames that the AMQP library cannot parse.
mod acker;
mod config;
mod connection;
mod consumer;
mod delay_queues;
mod error;
mod format;
mod inspect;
mod letters;
mod message;
#[cfg(feature = "plugin")]
pub mod plugin;
mod publish;
mod publisher;
mod replies;
mod sanitize;
mod settle;
mod subscription;

/// The client crate, in the version whose connections and channels `from_client` and `from_channel` take.
pub use lapin;

pub use config::{RabbitmqConfig, RabbitmqQueueConfig};
pub use connection::RabbitmqClient;
pub use connection::endpoint::RabbitmqEndpoint;
pub use consumer::RabbitmqConsumer;
pub use inspect::RabbitmqQueueStatus;
pub use letters::RabbitmqLetters;
pub use publisher::RabbitmqPublisher;
pub use replies::RabbitmqReplies;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct RabbitmqReadme;
