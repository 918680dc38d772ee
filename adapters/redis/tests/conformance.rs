//! The store suite against a real server.
#![allow(clippy::unwrap_used)]

mod support;

mod standalone {
    use crate::support::Standalone;

    onceward::store_conformance!(Standalone::new());
    onceward::checkpoint_store_conformance!(Standalone::new());
}
