//! What `onceward check` finds about the topics and the group of `[source.kafka]`.

use onceward::store::{Advice, AdviceLevel};
use onceward::{Capabilities, Error};
use onceward_plugin::{Context, Finding, SourcePlugin, source};

use super::cluster::writable;
use super::source::{KafkaSource, waiting};
use crate::{KafkaConfig, SourceFacts, TopicFacts};

/// About as many bytes as the headers of a dead letter have.
const LETTER_HEADERS: u64 = 2048;

impl KafkaSource {
    pub(super) async fn inspect_topics(&self, context: &Context<'_>) -> Result<Vec<Finding>, Error> {
        let options = self.admin_options(context)?;
        let facts = options.source_facts().await?;
        let mut findings = vec![source::answers(context, &self.describe(context), Some(waiting(&facts)))];
        let mut advice = self.group_advice(&options, &facts)?;
        advice.extend(self.size_advice(context, &options, facts.max_message_bytes).await?);
        let mut capabilities = Capabilities::default();
        (capabilities.ordered, capabilities.retention) = (true, facts.retention);
        advice.extend(onceward::pipeline::start_check::advise(context.pipeline, &capabilities));
        findings.extend(advice.into_iter().map(|advice| Finding::advised(context.table(), advice)));
        Ok(findings)
    }

    fn group_advice(&self, options: &KafkaConfig, facts: &SourceFacts) -> Result<Vec<Advice>, Error> {
        let (group, state) = (&self.group, facts.group_state.as_str());
        let text = format!(
            "{} partitions; group {group} is {state} with {} members",
            facts.partitions, facts.members
        );
        let mut advice = vec![Advice::new(AdviceLevel::Ok, text)];
        if !facts.unreadable.is_empty() {
            let topics = facts.unreadable.join(", ");
            let text = format!("this user may not read {topics}; grant Read on topic and group");
            advice.push(Advice::new(AdviceLevel::Error, text));
        }
        if facts.retention.is_none() {
            let text = "records are kept without a limit, or the limit is not readable (that needs DescribeConfigs on the topics): \
                        a record that is redelivered after the store's ttl is handled again";
            advice.push(Advice::new(AdviceLevel::Warning, text));
        }
        if let Some(used) = facts.group_protocol.as_deref().filter(|_| facts.members > 0) {
            let ours = options.assignment_strategy()?;
            if !ours.split(',').any(|own| own.trim() == used) {
                let text = format!(
                    "the members of group {group} use partition.assignment.strategy {used:?} and this configuration {ours:?}, so that \
                     it cannot join; set the same in [source.kafka.properties], or stop the other members first"
                );
                advice.push(Advice::new(AdviceLevel::Error, text));
            }
        }
        Ok(advice)
    }

    /// Whether what the source's topics hold fits into the topics that it may go to.
    async fn size_advice(
        &self,
        context: &Context<'_>,
        options: &KafkaConfig,
        source_bytes: Option<u64>,
    ) -> Result<Vec<Advice>, Error> {
        let mut advice = Vec::new();
        for topic in &options.topics.retry_topics {
            let found = writable(options, &topic.name).await?;
            let effect = "larger messages wait for their retries in this process";
            advice.extend(fits(&topic.name, &found, source_bytes, effect));
        }
        if let Some(to) = context.dead_letter.map(|to| to.expose()) {
            // A letter has headers of ours besides.
            let with_headers = source_bytes.map(|bytes| bytes.saturating_add(LETTER_HEADERS));
            let found = writable(options, to).await?;
            advice.extend(fits(
                to,
                &found,
                with_headers,
                "the dead letters of the largest messages do not fit",
            ));
        }
        let retries = options.topics.retry_topics.iter();
        advice.extend(
            retries.map(|topic| Advice::new(AdviceLevel::Ok, format!("retries wait in {}", topic.name))),
        );
        Ok(advice)
    }
}

fn fits(topic: &str, facts: &TopicFacts, needed: Option<u64>, effect: &str) -> Option<Advice> {
    let (largest, needed) = (facts.max_message_bytes?, needed?);
    (largest < needed).then(|| {
        let text = format!(
            "{topic} takes {largest} bytes at most (max.message.bytes) and the source's topics {needed}: {effect}; raise it"
        );
        Advice::new(AdviceLevel::Warning, text)
    })
}
