//! What SQS says of a queue: [`QueueFacts`].

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use onceward::Error;

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
    /// Messages to be received, about.
    pub visible: u64,
    /// Messages that were received and not deleted, about.
    pub in_flight: u64,
    /// Messages that wait for their delay, about.
    pub delayed: u64,
}

impl QueueFacts {
    /// Asks SQS, for 4 s at most.
    ///
    /// # Errors
    /// `Config` if there is no such queue, `Denied` without the right `sqs:GetQueueAttributes`, `Unavailable`,
    /// `Throttled` or `Timeout` if SQS does not answer.
    pub async fn read(client: &Client, url: &str) -> Result<Self, Error> {
        let operation = || format!("read the attributes of queue {url}");
        let call = client.get_queue_attributes().queue_url(url).attribute_names(Name::All).send();
        let answer = tokio::time::timeout(Duration::from_secs(4), call)
            .await
            .map_err(|_| error::timeout(operation()))?
            .map_err(|error| error::sdk(operation(), &error))?;
        let text = |name: Name| answer.attributes().and_then(|all| all.get(&name)).map(String::as_str);
        let number = |name| text(name).and_then(|text| text.parse::<u64>().ok());
        let redrive = text(Name::RedrivePolicy).and_then(|policy| serde_json::from_str(policy).ok());
        Ok(Self {
            fifo: text(Name::FifoQueue) == Some("true") || url.ends_with(".fifo"),
            content_based_deduplication: text(Name::ContentBasedDeduplication) == Some("true"),
            visibility: number(Name::VisibilityTimeout).map(Duration::from_secs),
            retention: number(Name::MessageRetentionPeriod).map(Duration::from_secs),
            max_receive_count: redrive.as_ref().and_then(max_receive_count),
            visible: number(Name::ApproximateNumberOfMessages).unwrap_or(0),
            in_flight: number(Name::ApproximateNumberOfMessagesNotVisible).unwrap_or(0),
            delayed: number(Name::ApproximateNumberOfMessagesDelayed).unwrap_or(0),
        })
    }
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
}
