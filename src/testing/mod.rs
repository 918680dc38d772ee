//! What those who write adapters, or test their own pipelines, need: conformance suites for stores.

pub mod store;
