//! The context of a transactional producer, which collects the rejections of the broker: [`Rejections`].

use std::sync::{Mutex, PoisonError};

use onceward_kafka::internal::TracingContext;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

use crate::transform::send_groups::is_record_rejection;

/// The rejections since the last [`take`](Self::take), with the number of the group that was rejected. When a transaction is
/// aborted, all its delivery reports have arrived.
#[derive(Debug, Default)]
pub(super) struct Rejections {
    rejected: Mutex<Vec<(usize, Code)>>,
}

impl Rejections {
    /// Takes the rejections.
    pub(super) fn take(&self) -> Vec<(usize, Code)> {
        std::mem::take(&mut *self.rejected.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Rejections {
    fn log(&self, level: Level, facility: &str, line: &str) {
        TracingContext.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        TracingContext.error(error, reason);
    }
}

impl ProducerContext for Rejections {
    /// The number of the group.
    type DeliveryOpaque = usize;

    /// Runs on the client's thread. A failed delivery fails its transaction.
    fn delivery(&self, result: &DeliveryResult<'_>, group: usize) {
        let Err((error, _)) = result else { return };
        tracing::debug!(%error, "delivery of a transaction's record failed");
        if let Some(code) = error.rdkafka_error_code().filter(|code| is_record_rejection(*code)) {
            let mut rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
            if !rejected.contains(&(group, code)) {
                rejected.push((group, code));
            }
        }
    }
}
