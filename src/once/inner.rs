//! The parts that the clones of a [`Deduplicator`](super::Deduplicator) and its tasks share: [`Inner`].

use parking_lot::Mutex;
use std::sync::Arc;

use tokio::time::Instant;

use super::calls::Calls;
use super::config::OnceConfig;
use crate::janitor::Janitor;
use crate::key::Scope;
use crate::store::{Entropy, Store};
use crate::telemetry::{Counters, RateLimited};

pub(super) struct Inner {
    pub(super) scope: Scope,
    pub(super) store: Arc<dyn Store>,
    pub(super) config: OnceConfig,
    pub(super) calls: Calls,
    pub(super) counters: Arc<Counters>,
    pub(super) refused: RateLimited,
    pub(super) entropy: Mutex<Entropy>,
    pub(super) started_at: Instant,
    pub(super) _janitor: Janitor,
}
