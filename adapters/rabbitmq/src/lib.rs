//! RabbitMQ.
mod acker;
mod config;
mod connection;
mod consumer;
mod endpoint;
mod error;
mod facts;
mod headers;
mod line;
mod link;
mod message;
mod outgoing;
mod properties;
mod publisher;
mod screen;
mod transport;
mod wait;
mod window;

pub use config::{QueueConfig, RabbitConfig};
pub use consumer::RabbitConsumer;
pub use endpoint::Endpoint;
pub use facts::QueueFacts;
pub use publisher::RabbitPublisher;
