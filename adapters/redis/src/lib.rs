//! Redis or Valkey as the store of [`onceward`].

mod ask;
mod call;
mod check;
mod checkpoint;
mod config;
mod connect;
mod error;
mod group;
mod keys;
mod link;
mod network;
mod scan;
mod script;
mod store;
mod wire;

pub use config::RedisConfig;
pub use store::RedisStore;
