//! SQS source and publisher for onceward: visibility kept alive, FIFO groups, batched deletes.
//!
//! [`SqsConsumer`] delivers a queue's messages, [`SqsPublisher`] sends messages and returns once SQS has confirmed them.
//! Both are made from a configuration or from the program's own client.
//!
//! Key sources: `message-id` is the producer's own for letters and what [`SqsPublisher`] was given, SNS's if its envelope is taken
//! off, and SQS's for all others; message attributes are headers, and so are
//! `sqs-message-deduplication-id`, `sqs-sequence-number` and `sqs-receive-count`.

mod acker;
mod bounded;
mod config;
mod consumer;
mod encrypted;
mod endpoint;
mod error;
mod facts;
mod fifo;
mod form;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod held;
mod message;
mod pack;
#[cfg(feature = "plugin")]
pub mod plugin;
mod poller;
mod publisher;
mod sns;
mod trouble;

pub use config::{QueueConfig, SqsConfig};
pub use consumer::SqsConsumer;
pub use endpoint::Endpoint;
pub use facts::QueueFacts;
pub use publisher::SqsPublisher;
