//! The store suite against a real server, with the compact layout.
#![allow(clippy::unwrap_used)]

mod support;

use onceward_redis::RedisLayout;
use onceward_test_servers::redis::Redis;
use support::{ConfigExt, Part, config};

fn compact() -> Part {
    Part::of(config(&Redis::shared().url()).layout(RedisLayout::Compact))
}

onceward::store_conformance!(compact());
