//! RabbitMQ as a source and a publisher for [`onceward`]: [`RabbitConsumer`] delivers the messages of a queue and comes back
//! by itself, [`RabbitPublisher`] publishes confirmed.
//!
//! What is promised, what is not, and the policies to set on the broker are in the crate's README.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use onceward::{DeadLetters, Handled, KeySource, MemoryStore, Message, Pipeline, Scope, handler_fn};
//! use onceward_rabbitmq::{Endpoint, RabbitConfig, RabbitConsumer, RabbitPublisher};
//!
//! async fn charge(_app: (), message: Message) -> Handled {
//!     println!("{} bytes", message.payload().len());
//!     Ok(())
//! }
//!
//! let url = "amqps://user:password@rabbit.example/%2f";
//! let orders = RabbitConsumer::open(RabbitConfig::new(url, "orders")).await?;
//! let letters = RabbitPublisher::open(Endpoint::new(url)).await?;
//! let pipeline = Pipeline::builder(Scope::parse("billing")?, orders, Arc::new(MemoryStore::new()))
//!     .keys([KeySource::MessageId])
//!     .dead_letters(DeadLetters::new(Arc::new(letters), "orders.dead"))
//!     .handler(handler_fn((), charge))?;
//! pipeline.run(Default::default()).await?;
//! # Ok(())
//! # }
//! ```
mod acker;
mod config;
mod confirm;
mod connection;
mod consumer;
mod depth;
mod endpoint;
mod error;
mod facts;
mod frames;
mod gauge;
mod headers;
mod held;
mod keeper;
mod line;
mod link;
mod loss;
mod mended;
mod message;
mod native;
mod outgoing;
#[cfg(feature = "plugin")]
pub mod plugin;
mod probe;
mod properties;
mod publisher;
mod round;
mod screen;
mod sequence;
mod suspects;
mod transport;
mod wait;
mod window;

pub use config::{QueueConfig, RabbitConfig};
pub use consumer::RabbitConsumer;
pub use endpoint::Endpoint;
pub use facts::QueueFacts;
pub use publisher::RabbitPublisher;
