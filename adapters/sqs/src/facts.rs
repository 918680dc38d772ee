//! What SQS says of a queue: [`QueueFacts`].

use std::fmt;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use onceward::{Capabilities, Error};

use crate::config::{LONGEST_VISIBILITY, QueueConfig};
use crate::error;

/// What a queue is set to, as far as its promises depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueFacts {
    /// It keeps the order within message groups.
    pub fifo: bool,
    /// A FIFO queue that takes a hash of the body where a message has no deduplication id: equal bodies within five
    /// minutes are one message.
    pub content_based_deduplication: bool,
    /// Its own visibility timeout; the consumer asks for that of its configuration.
    pub visibility: Option<Duration>,
    /// How long it keeps a message.
    pub retention: Option<Duration>,
    /// Its redrive policy moves a message away after so many receives.
    pub max_receive_count: Option<u32>,
    /// Where the redrive policy moves it: the ARN of a queue.
    pub redrive_target: Option<String>,
    /// Messages to be received, about.
    pub visible: u64,
    /// Messages that were received and not deleted, about.
    pub in_flight: u64,
    /// Messages that wait for their delay, about.
    pub delayed: u64,
    /// The credentials allow reading all of this.
    pub(crate) is_known: bool,
}

impl QueueFacts {
    /// Asks SQS, for 4 s at most.
    ///
    /// # Errors
    /// `Config` if there is no such queue, `Denied` without the right `sqs:GetQueueAttributes`, `Unavailable`,
    /// `Throttled` or `Timeout` if SQS does not answer.
    pub async fn read(client: &Client, url: &str) -> Result<Self, Error> {
        let operation = || format!("read the attributes of queue {url}");
        error::needs_region(client, operation())?;
        let call = client.get_queue_attributes().queue_url(url).attribute_names(Name::All).send();
        let answer = tokio::time::timeout(Duration::from_secs(4), call)
            .await
            .map_err(|_| error::timeout(operation()))?
            .map_err(|error| error::with_endpoint_hint(url, error::sdk(operation(), &error)))?;
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

/// The largest message that a queue takes, in bytes; `None` if SQS does not say.
pub(crate) async fn largest_message(client: &Client, url: &str) -> Result<Option<usize>, Error> {
    let operation = || format!("read the largest message size of queue {url}");
    let call = client.get_queue_attributes().queue_url(url).attribute_names(Name::MaximumMessageSize).send();
    let answer = tokio::time::timeout(Duration::from_secs(2), call)
        .await
        .map_err(|_| error::timeout(operation()))?
        .map_err(|error| error::sdk(operation(), &error))?;
    let text = answer.attributes().and_then(|all| all.get(&Name::MaximumMessageSize));
    Ok(text.and_then(|text| text.parse().ok()))
}

impl QueueFacts {
    /// Messages that wait to be received, about; `None` without the right to look.
    pub(crate) fn lag(&self) -> Option<u64> {
        self.is_known.then_some(self.visible + self.delayed)
    }

    /// What a consumer of this queue, configured so, can and cannot do.
    pub fn capabilities(&self, queue: &QueueConfig) -> Capabilities {
        let mut capabilities = Capabilities::default();
        // A failed message of a FIFO queue must not be overtaken by the rest of its group.
        capabilities.delayed_retry = !self.fifo;
        capabilities.heartbeat = Some(queue.visibility);
        capabilities.ordered = self.fifo;
        capabilities.ack_timeout = Some(LONGEST_VISIBILITY);
        capabilities.delivery_limit = self.max_receive_count;
        capabilities.retention = self.retention;
        capabilities
    }
}

/// What does not change from one look to the next, in one line.
impl fmt::Display for QueueFacts {
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

/// SQS writes the number as a number or as text, whichever the policy was made with.
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
    fn what_is_known_of_a_queue_is_said_in_one_line() {
        let facts = QueueFacts {
            fifo: true,
            retention: Some(Duration::from_secs(60)),
            max_receive_count: Some(5),
            redrive_target: Some("arn:dead".into()),
            ..QueueFacts::default()
        };
        assert_eq!(
            facts.to_string(),
            "a FIFO queue that keeps messages for 60 s; after 5 receives they are moved to arn:dead"
        );
        assert_eq!(QueueFacts::default().to_string(), "a standard queue, without a redrive policy");
    }
}
