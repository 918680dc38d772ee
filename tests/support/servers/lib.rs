//! Private real servers on free loopback ports, and a proxy that breaks the connection to them; and the output that benchmarks share.
//! It depends on nothing of the library, so that every crate's tests can use it.
//!
//! A server belongs to the test that started it: it may be stopped, killed and restarted, and it ends with the test
//! process, however that ends. A server that is not installed is a failure that says how to install it, never a pass.

mod cache;
pub mod certificates;
pub mod elasticmq;
pub mod figures;
mod jars;
pub mod kafka;
pub mod lying;
pub mod otlp;
pub mod pgbouncer;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod pubsub;
pub mod rabbitmq;
pub mod redis;
pub mod releases;
pub mod telling;
pub mod wrapping;
