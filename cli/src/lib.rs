//! The `onceward` program as a library: deduplication in front of a handler in any language.

pub mod config;
pub mod handlers;
