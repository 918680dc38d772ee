//! Measures the number of ready messages of a queue at intervals: [`LagMonitor`].

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use onceward::telemetry::SourceHealth;
use tokio::task::JoinHandle;

use crate::config::RabbitmqQueueConfig;
use crate::inspect::query_queue_on;

/// The interval between two measurements.
const INTERVAL: Duration = Duration::from_secs(5);

/// Updates the lag of a source, on a channel of its own, until it is dropped.
pub(crate) struct LagMonitor(JoinHandle<()>);

impl LagMonitor {
    pub(crate) fn start(channel: Channel, queue: &RabbitmqQueueConfig, health: &Arc<SourceHealth>) -> Self {
        let (name, health) = (queue.name.clone(), Arc::clone(health));
        Self(tokio::spawn(async move {
            while let Ok(status) = query_queue_on(&channel, &name).await {
                health.set_lag(Some(status.ready.into()));
                tokio::time::sleep(INTERVAL).await;
            }
            // The queue is missing and the channel closed; the consumer notices as well.
            health.set_lag(None);
        }))
    }
}

impl Drop for LagMonitor {
    fn drop(&mut self) {
        self.0.abort();
    }
}
