//! RabbitMQ in the configuration of the `onceward` program: `[source.rabbitmq]`, `[handler.publish.rabbitmq]` and
//! `[outbox.rabbitmq]`.

mod advice;
mod connection;
mod relay;
mod source;
mod target;

pub use relay::RabbitmqRelay;
pub use source::RabbitmqSource;
pub use target::RabbitmqTarget;
