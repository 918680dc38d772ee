//! Inspects the topics and the group of `[source.kafka]` for `onceward check`.

use onceward::Error;
use onceward::adapter::Capabilities;
use onceward::store::Advice;
use onceward_plugin::{Context, Finding, SourcePlugin, source};

use super::cluster::inspect_writable;
use super::source::{KafkaSource, backlog_of};
use crate::{GroupStatus, KafkaConfig, TopicStatus};

/// Approximate size of the headers of a dead letter, in bytes.
const LETTER_HEADERS: u64 = 2048;

impl KafkaSource {
    pub(super) async fn inspect_topics(&self, context: &Context<'_>) -> Result<Vec<Finding>, Error> {
        let options = self.admin_options(context)?;
        let status = options.inspect_group().await?;
        let mut findings = vec![source::answers(context, &self.describe(context), Some(backlog_of(&status)))];
        match self.advice_on_topics(context, &options, &status).await {
            Ok(advice) => {
                findings.extend(advice.into_iter().map(|advice| Finding::advised(context.table(), advice)));
            }
            // The cluster answers, and dead letters are inspected by themselves.
            Err(error) => findings.push(Finding::failed(context.table(), &error)),
        }
        Ok(findings)
    }

    async fn advice_on_topics(
        &self,
        context: &Context<'_>,
        options: &KafkaConfig,
        status: &GroupStatus,
    ) -> Result<Vec<Advice>, Error> {
        let mut advice = self.group_advice(options, status)?;
        advice.extend(self.size_advice(context, options, status.max_message_bytes).await?);
        let mut capabilities = Capabilities::default();
        (capabilities.ordered, capabilities.retention) = (true, status.retention);
        advice.extend(onceward::pipeline::start_check::advise(context.pipeline, &capabilities));
        Ok(advice)
    }

    fn group_advice(&self, options: &KafkaConfig, status: &GroupStatus) -> Result<Vec<Advice>, Error> {
        let (group, state) = (&self.group, status.group_state.as_str());
        let text = format!(
            "{} partitions; group {group} is {state} with {} members",
            status.partitions, status.members
        );
        let mut advice = vec![Advice::ok(text)];
        if !status.unreadable.is_empty() {
            let topics = status.unreadable.join(", ");
            let text = format!("this user may not read {topics}; grant Read on topic and group");
            advice.push(Advice::error("kafka-topics-not-readable", text));
        }
        if status.retention.is_none() {
            let text = "records are kept without a limit, or the limit is not readable (that needs DescribeConfigs on the topics): \
                        a record that is redelivered after the store's ttl is handled again";
            advice.push(Advice::warning("kafka-retention-unlimited", text));
        }
        if let Some(used) = status.group_protocol.as_deref().filter(|_| status.members > 0) {
            let ours = options.assignment_strategy()?;
            if !ours.split(',').any(|own| own.trim() == used) {
                let text = format!(
                    "the members of group {group} use partition.assignment.strategy {used:?} and this configuration {ours:?}, so that \
                     it cannot join; set the same in [source.kafka.properties], or stop the other members first"
                );
                advice.push(Advice::error("kafka-assignment-strategy", text));
            }
        }
        Ok(advice)
    }

    /// Compares the message limits of the source's topics with those of the retry and dead-letter topics.
    async fn size_advice(
        &self,
        context: &Context<'_>,
        options: &KafkaConfig,
        source_bytes: Option<u64>,
    ) -> Result<Vec<Advice>, Error> {
        let mut advice = Vec::new();
        for topic in &options.topics.retry_topics {
            let found = inspect_writable(&options.connection, &topic.name).await?;
            let effect = "larger messages wait for their retries in this process";
            advice.extend(fits(&topic.name, &found, source_bytes, effect));
        }
        if let Some(to) = context.dead_letter.map(|to| to.expose()) {
            // A dead letter has additional headers.
            let with_headers = source_bytes.map(|bytes| bytes.saturating_add(LETTER_HEADERS));
            let found = inspect_writable(&options.connection, to).await?;
            advice.extend(fits(
                to,
                &found,
                with_headers,
                "the dead letters of the largest messages do not fit",
            ));
        }
        let retries = options.topics.retry_topics.iter();
        advice.extend(retries.map(|topic| Advice::ok(format!("retries wait in {}", topic.name))));
        Ok(advice)
    }
}

fn fits(topic: &str, status: &TopicStatus, needed: Option<u64>, effect: &str) -> Option<Advice> {
    let (largest, needed) = (status.max_message_bytes?, needed?);
    (largest < needed).then(|| {
        let text = format!(
            "{topic} takes {largest} bytes at most (max.message.bytes) and the source's topics {needed}: {effect}; raise it"
        );
        Advice::warning("kafka-topic-too-small", text)
    })
}
