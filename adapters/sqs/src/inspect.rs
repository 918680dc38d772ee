//! Inspects queues without changing anything: [`SqsQueueStatus`].

use std::fmt;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use onceward::Error;
use onceward::adapter::Capabilities;

use crate::config::{LONGEST_VISIBILITY, SqsQueueConfig};
use crate::error;

/// Attributes and approximate message counts of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqsQueueStatus {
    /// True for a FIFO queue, which keeps the order within message groups.
    pub fifo: bool,
    /// True for a FIFO queue that uses a hash of the body as deduplication id: messages with equal bodies within five
    /// minutes count as one.
    pub content_based_deduplication: bool,
    /// The queue's default visibility timeout; the consumer uses that of its configuration.
    pub visibility: Option<Duration>,
    /// The message retention period.
    pub retention: Option<Duration>,
    /// The redrive policy moves a message away after this many receives.
    pub max_receive_count: Option<u32>,
    /// The ARN of the redrive policy's target queue.
    pub redrive_target: Option<String>,
    /// The approximate number of messages ready to be received.
    pub visible: u64,
    /// The approximate number of messages received and not deleted.
    pub in_flight: u64,
    /// The approximate number of delayed messages.
    pub delayed: u64,
    /// True if the credentials allow reading the attributes.
    pub(crate) is_known: bool,
}

impl SqsQueueStatus {
    /// Queries SQS, with a timeout of 4 s.
    ///
    /// # Errors
    /// `Config` if the queue does not exist, `Denied` without the right `sqs:GetQueueAttributes`, `Unavailable`,
    /// `Throttled` or `Timeout` if SQS does not respond.
    pub async fn read(client: &Client, url: &str) -> Result<Self, Error> {
        let operation = || format!("read the attributes of queue {url}");
        error::require_region(client, operation())?;
        let call = client.get_queue_attributes().queue_url(url).attribute_names(Name::All).send();
        let answer = tokio::time::timeout(Duration::from_secs(4), call)
            .await
            .map_err(|_| error::timeout(operation()))?
            .map_err(|error| error::with_endpoint_hint(url, error::classify(operation(), &error)))?;
        let text = |name: Name| answer.attributes().and_then(|all| all.get(&name)).map(String::as_str);
        let number = |name| text(name).and_then(|text| text.parse::<u64>().ok());
        let redrive = text(Name::RedrivePolicy).and_then(|policy| serde_json::from_str(policy).ok());
        Ok(Self {
            is_known: true,
            fifo: text(Name::FifoQueue) == Some("true") || url.ends_with(".fifo"),
            content_based_deduplication: text(Name::ContentBasedDeduplication) == Some("true"),
            visibility: number(Name::VisibilityTimeout).map(Duration::from_secs),
            retention: number(Name::MessageRetentionPeriod).map(Duration::from_secs),
            max_receive_count: redrive.as_ref().and_then(max_receive_count),
            redrive_target: redrive.as_ref().and_then(redrive_target),
            visible: number(Name::ApproximateNumberOfMessages).unwrap_or(0),
            in_flight: number(Name::ApproximateNumberOfMessagesNotVisible).unwrap_or(0),
            delayed: number(Name::ApproximateNumberOfMessagesDelayed).unwrap_or(0),
        })
    }
}

/// Reads the largest message size of a queue, in bytes; `None` if SQS does not report it.
pub(crate) async fn read_size_limit(client: &Client, url: &str) -> Result<Option<usize>, Error> {
    let operation = || format!("read the largest message size of queue {url}");
    let call = client.get_queue_attributes().queue_url(url).attribute_names(Name::MaximumMessageSize).send();
    let answer = tokio::time::timeout(Duration::from_secs(2), call)
        .await
        .map_err(|_| error::timeout(operation()))?
        .map_err(|error| error::classify(operation(), &error))?;
    let text = answer.attributes().and_then(|all| all.get(&Name::MaximumMessageSize));
    Ok(text.and_then(|text| text.parse().ok()))
}

impl SqsQueueStatus {
    /// The approximate number of messages to be received; `None` without the right to read it.
    pub(crate) fn lag(&self) -> Option<u64> {
        self.is_known.then_some(self.visible + self.delayed)
    }

    /// The capabilities of a consumer of this queue with this configuration.
    pub fn capabilities(&self, queue: &SqsQueueConfig) -> Capabilities {
        let mut capabilities = Capabilities::default();
        // The rest of a FIFO group must not overtake a failed message.
        capabilities.delayed_retry = !self.fifo;
        capabilities.heartbeat = Some(queue.visibility);
        capabilities.ordered = self.fifo;
        // From the counts among the attributes.
        capabilities.reports_idle = self.is_known;
        capabilities.ack_timeout = Some(LONGEST_VISIBILITY);
        capabilities.delivery_limit = self.max_receive_count;
        capabilities.retention = self.retention;
        capabilities
    }
}

/// The attributes, without the counts, in one line.
impl fmt::Display for SqsQueueStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.fifo { "a FIFO queue" } else { "a standard queue" })?;
        if let Some(retention) = self.retention {
            write!(f, " that keeps messages for {} s", retention.as_secs())?;
        }
        match (self.max_receive_count, &self.redrive_target) {
            (Some(count), Some(target)) => write!(f, "; after {count} receives they are moved to {target}"),
            (Some(count), None) => write!(f, "; after {count} receives they are moved away"),
            (None, _) => f.write_str(", without a redrive policy"),
        }
    }
}

fn redrive_target(policy: &serde_json::Value) -> Option<String> {
    Some(policy.get("deadLetterTargetArn")?.as_str()?.to_owned())
}

/// SQS writes the count as a number or as text, depending on how the policy was created.
fn max_receive_count(policy: &serde_json::Value) -> Option<u32> {
    let count = policy.get("maxReceiveCount")?;
    let number = count.as_u64().or_else(|| count.as_str()?.parse().ok())?;
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redrive_policy_may_hold_its_count_as_text() {
        for (policy, count) in [
            (serde_json::json!({"maxReceiveCount": 5}), Some(5)),
            (serde_json::json!({"maxReceiveCount": "7"}), Some(7)),
            (serde_json::json!({}), None),
        ] {
            assert_eq!(max_receive_count(&policy), count);
        }
    }

    #[test]
    fn the_attributes_of_a_queue_are_printed_in_one_line() {
        let status = SqsQueueStatus {
            fifo: true,
            retention: Some(Duration::from_secs(60)),
            max_receive_count: Some(5),
            redrive_target: Some("arn:dead".into()),
            ..SqsQueueStatus::default()
        };
        assert_eq!(
            status.to_string(),
            "a FIFO queue that keeps messages for 60 s; after 5 receives they are moved to arn:dead"
        );
        assert_eq!(SqsQueueStatus::default().to_string(), "a standard queue, without a redrive policy");
    }
}
