//! The context of a transactional producer: notes what the broker refuses. [`Reports`].

use std::sync::{Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

use super::parts::is_of_the_record;
use onceward_kafka::internal::Traced;

/// What the broker has refused since the last [`take`](Self::take), by the number of the group it was sent in. All reports of a
/// transaction have come when it is aborted.
#[derive(Debug, Default)]
pub(super) struct Reports {
    refused: Mutex<Vec<(usize, Code)>>,
}

impl Reports {
    /// What was refused.
    pub(super) fn take(&self) -> Vec<(usize, Code)> {
        std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Reports {
    fn log(&self, level: Level, facility: &str, line: &str) {
        Traced.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Traced.error(error, reason);
    }
}

impl ProducerContext for Reports {
    /// The number of the group.
    type DeliveryOpaque = usize;

    /// Called on the client's thread. What cannot be delivered fails its transaction.
    fn delivery(&self, result: &DeliveryResult<'_>, group: usize) {
        let Err((error, _)) = result else { return };
        tracing::debug!(%error, "a record of a transaction was not delivered");
        if let Some(code) = error.rdkafka_error_code().filter(|code| is_of_the_record(*code)) {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            if !refused.contains(&(group, code)) {
                refused.push((group, code));
            }
        }
    }
}
