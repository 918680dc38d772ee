//! RabbitMQ in the configuration of the `onceward` program: `[source.rabbitmq]`, `[handler.publish.rabbitmq]` and
//! `[outbox.rabbitmq]`.

mod advice;
mod connection;
mod relay;
mod source;
mod target;

pub use relay::RabbitmqRelay as Relay;
pub use source::RabbitmqSource as Source;
pub use target::RabbitmqTarget as Target;
