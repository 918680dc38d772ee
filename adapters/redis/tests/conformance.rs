//! The store suite against a real server.
#![allow(clippy::unwrap_used)]

mod support;

use onceward_test_servers::redis::Redis;
use support::{Part, config};

fn standalone() -> Part {
    Part::of(config(&Redis::shared().url()))
}

onceward::store_conformance!(standalone());
onceward::checkpoint_store_conformance!(standalone());
onceward::audit_log_conformance!(standalone());
