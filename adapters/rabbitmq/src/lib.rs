//! RabbitMQ.
mod properties;
mod screen;
