//! `[source.kafka]`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::adapter::{CheckpointStore, Consumer};
use onceward::pipeline::config::Ordering;
use onceward::{DeadLetters, Error, HeaderTrust, KeySource, OwnHeaders, Publisher, Scope};
use onceward_plugin::value::HumanDuration;
use onceward_plugin::{
    Backlog, Checked, Context, DeadLetterStatus, Finding, Letters, Place, Problem, SourceParts, SourcePlugin,
    TemporarySource, check,
};

use super::cluster::{cluster_table, inspect_writable};
use super::properties::Properties;
use super::temporary::{self, TemporaryTopic};
use crate::{GroupStatus, KafkaConfig, KafkaConsumer, KafkaLetters, KafkaPublisher, RetryTopic, TopicConfig};

cluster_table! {
    /// Kafka topics, consumed as a consumer group.
    KafkaSource [] {
        /// The topics to consume.
        pub topics: Vec<String>,
        /// The consumer group.
        pub group: String,
        /// Topics in which messages wait for their next attempt, each with the shortest delay it is for, from 1s to 7d: such as
        /// `{ "orders.retry.1m" = "1m" }`. They must exist. Shorter delays are waited for in this process. Needs
        /// `pipeline.ordering = "none"`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub retry_topics: BTreeMap<String, HumanDuration>,
    }
}

/// The longest drain of a revoked partition: until it is over, nothing more is fetched from the others.
const LONGEST_DRAIN: Duration = Duration::from_secs(10);

impl KafkaSource {
    pub(super) fn options(
        &self,
        context: &Context<'_>,
        own_headers: OwnHeaders,
    ) -> Result<KafkaConfig, Error> {
        let connection = self.cluster().connection(context)?;
        let topics = TopicConfig::new(self.topics.iter().map(String::as_str));
        let mut options = KafkaConfig { connection, group: self.group.clone(), topics };
        options.topics.drain_timeout = Some(context.pipeline.drain_timeout.min(LONGEST_DRAIN));
        let retry_topics = self.retry_topics.iter();
        options.topics.retry_topics =
            retry_topics.map(|(name, delay)| RetryTopic::new(name, delay.get())).collect();
        options.topics.own_headers = own_headers;
        Ok(options)
    }

    /// As [`options`](Self::options), for a client that reads no message.
    pub(super) fn admin_options(&self, context: &Context<'_>) -> Result<KafkaConfig, Error> {
        self.options(context, OwnHeaders::default())
    }

    fn open_publisher(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(KafkaPublisher::open(self.cluster().connection(context)?)?))
    }

    /// Only values written on both sides can contradict each other: the adapter fits one that is not written to the other. Neither
    /// bounds a drain, since the member goes on polling while it drains.
    fn check_poll_interval(&self, context: &Context<'_>) -> Checked {
        let written = |name| match self.properties.get(name) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                let key = Properties::key(context, name);
                context.problem(&key, "is not a whole number", "write milliseconds, such as 45000")
            }),
        };
        let (session, poll) = (written("session.timeout.ms")?, written("max.poll.interval.ms")?);
        match (session, poll) {
            (Some(session), Some(poll)) if poll < session => Err(context.problem(
                &Properties::key(context, "max.poll.interval.ms"),
                "is shorter than session.timeout.ms, which Kafka's client rejects",
                "raise it to session.timeout.ms at least, or remove one of the two",
            )),
            _ => Ok(()),
        }
    }

    fn check_retry_topics(&self, context: &Context<'_>) -> Checked {
        if self.retry_topics.is_empty() {
            return Ok(());
        }
        if context.pipeline.ordering != Ordering::None {
            return Err(context.problem(
                "retry_topics",
                "gives up the order that pipeline.ordering is there to keep",
                r#"remove it, or write ordering = "none""#,
            ));
        }
        for (topic, delay) in &self.retry_topics {
            let option = format!("retry_topics.{topic:?}");
            check::duration(context, &option, *delay, RetryTopic::DELAY)?;
            if self.topics.contains(topic) {
                return Err(context.problem(
                    "retry_topics",
                    "names a topic that is in topics as well",
                    "give it one of its own",
                ));
            }
        }
        Ok(())
    }

    /// A message in a retry topic has another position. Where the key is that, only an authenticated header can restore it.
    fn check_key(&self, context: &Context<'_>) -> Checked {
        let is_lost = !self.retry_topics.is_empty() && context.key_sources.iter().any(uses_position);
        if is_lost && context.header_trust == HeaderTrust::Ignore {
            return Err(context.problem(
                "retry_topics",
                "gives messages another position, while key.from has `position` and nothing proves where they were first",
                "add secret_file to [key], the same for all workers; or take the key from elsewhere in key.from",
            ));
        }
        Ok(())
    }

    fn check_dead_letters(&self, context: &Context<'_>) -> Checked {
        let Some(to) = context.dead_letter.map(|to| to.expose()) else { return Ok(()) };
        let problem = if self.topics.iter().any(|topic| topic == to) {
            "is a topic that messages come from"
        } else if self.retry_topics.contains_key(to) {
            "is a retry topic of the source"
        } else {
            return Ok(());
        };
        Err(Problem::new("dead_letter.to", problem, "give dead letters a destination of their own"))
    }
}

fn uses_position(source: &KeySource) -> bool {
    match source {
        KeySource::Position => true,
        KeySource::Composite(parts) => parts.iter().any(uses_position),
        _ => false,
    }
}

#[async_trait]
impl SourcePlugin for KafkaSource {
    fn describe(&self, _: &Context<'_>) -> String {
        format!("kafka:{}", self.topics.join(","))
    }

    fn facts(&self) -> onceward_plugin::SourceFacts {
        let has_retry_topics = !self.retry_topics.is_empty();
        onceward_plugin::SourceFacts {
            has_record_keys: true,
            default_ordering: if has_retry_topics { Ordering::None } else { Ordering::Partition },
            reorders_retries: has_retry_topics,
            ..onceward_plugin::SourceFacts::BROKER
        }
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.cluster().check(context)?;
        check::texts(context, "topics", &self.topics, |topic| topic.trim().is_empty())?;
        check::text(context, "group", &self.group)?;
        self.check_retry_topics(context)?;
        self.check_poll_interval(context)?;
        self.check_dead_letters(context)?;
        self.check_key(context)
    }

    /// Lanes order the messages of one worker; between workers only the partitions can.
    fn advice(&self, context: &Context<'_>) -> Vec<Finding> {
        let by_value = matches!(context.pipeline.ordering, Ordering::By(_));
        let advice = by_value.then(|| {
            Problem::new(
                "pipeline.ordering",
                "holds within one worker only, unless producers partition by the same value",
                r#"write order_by = "broker", or partition the topic by that value"#,
            )
            .into_warning("kafka-order-by-value")
        });
        advice.into_iter().collect()
    }

    fn places(&self) -> Vec<Place> {
        let servers = self.cluster().servers();
        let topics = self.topics.iter().chain(self.retry_topics.keys());
        topics.map(|topic| Place { system: "kafka", servers: servers.clone(), name: topic.clone() }).collect()
    }

    async fn open(&self, context: &Context<'_>, parts: SourceParts) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(KafkaConsumer::open(self.options(context, parts.own_headers)?).await?))
    }

    async fn dead_letters(
        &self,
        context: &Context<'_>,
        to: &str,
        _: OwnHeaders,
    ) -> Result<DeadLetters, Error> {
        // A missing topic would hold the first letter for ever.
        inspect_writable(&self.cluster().connection(context)?, to).await?;
        Ok(DeadLetters::new(self.open_publisher(context)?, to))
    }

    async fn letters(&self, context: &Context<'_>, from: &str, parts: SourceParts) -> Result<Letters, Error> {
        Ok(Letters {
            from: self.letters_to_read(context, from, parts).await?,
            to: self.open_publisher(context)?,
            destinations: self.topics.clone(),
        })
    }

    async fn letters_to_read(
        &self,
        context: &Context<'_>,
        from: &str,
        parts: SourceParts,
    ) -> Result<Box<dyn Consumer>, Error> {
        let (connection, group) = (self.cluster().connection(context)?, format!("{}.redrive", self.group));
        let SourceParts { scope, checkpoints, own_headers } = parts;
        Ok(Box::new(KafkaLetters::open(&connection, from, &group, own_headers, scope, checkpoints).await?))
    }

    fn reads_letters_freely(&self) -> bool {
        true
    }

    async fn publisher(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        self.open_publisher(context)
    }

    async fn backlog(
        &self,
        context: &Context<'_>,
        _: &Scope,
        _: &dyn CheckpointStore,
    ) -> Result<Option<Backlog>, Error> {
        Ok(Some(backlog_of(&self.admin_options(context)?.inspect_group().await?)))
    }

    async fn dead_letter_status(&self, context: &Context<'_>, to: &str) -> Result<DeadLetterStatus, Error> {
        let topic = inspect_writable(&self.cluster().connection(context)?, to).await?;
        let place = context.dead_letter.map(|to| to.redacted()).unwrap_or_default();
        Ok(DeadLetterStatus { place, letters: Some(topic.records) })
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<Vec<Finding>, Error> {
        self.inspect_topics(context).await
    }

    async fn temporary(&self, context: &Context<'_>, prefix: &str) -> Result<TemporarySource, Error> {
        let beside = self.topics.first().map_or("", String::as_str);
        let (name, group) = (format!("{prefix}.{beside}"), format!("{prefix}.{}", self.group));
        let table = Self {
            topics: vec![name.clone()],
            group: group.clone(),
            retry_topics: BTreeMap::new(),
            // A new group would skip what was published before it has joined.
            properties: self.properties.without("auto.offset.reset"),
            ..self.clone()
        };
        let (connection, publisher) = (self.cluster().connection(context)?, self.open_publisher(context)?);
        temporary::create(connection, publisher, TemporaryTopic { beside, name, group }, Box::new(table))
            .await
    }
}

pub(super) fn backlog_of(status: &GroupStatus) -> Backlog {
    Backlog { messages: Some(status.lag), bytes: None, consumers: Some(status.members.into()) }
}
