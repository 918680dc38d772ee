//! `[source.pubsub]`.

use std::sync::Arc;

use async_trait::async_trait;
use onceward::adapter::{CheckpointStore, Consumer};
use onceward::pipeline::config::Ordering;
use onceward::{DeadLetters, Error, OwnHeaders, Publisher, Scope};
use onceward_plugin::value::{ByteCount, HumanDuration};
use onceward_plugin::{
    Backlog, Checked, Context, DeadLetterStatus, Finding, Letters, Place, Problem, SourceFacts, SourceParts,
    SourcePlugin, TemporarySource, check, source,
};

use super::advice;
use super::connection::{check_name, pubsub_table};
use super::target::place;
use super::temporary::{self, TemporarySubscription};
use crate::connection::names::Collection;
use crate::connection::reachability::Reachability;
use crate::inspect::{Permission, check_topic};
use crate::{
    PubsubConfig, PubsubConsumer, PubsubPublisher, PubsubSubscriptionConfig, PubsubSubscriptionStatus, error,
};

pubsub_table! {
    /// A subscription of Google Cloud Pub/Sub.
    PubsubSource [] {
        /// The subscription: `projects/PROJECT/subscriptions/NAME`, or `NAME` with a project.
        pub subscription: String,
        /// The subscription has message ordering enabled. The default of `[pipeline] ordering` is then `key`, by the
        /// ordering key.
        #[serde(default)]
        pub ordered: bool,
        /// The ack deadline of a received message, from 10s to 10m in whole seconds. It is extended as long as the message is
        /// held, so it bounds only how long a dead worker's messages wait.
        #[serde(default = "default_ack_deadline")]
        pub ack_deadline: HumanDuration,
        /// The most messages held at once, between their receipt and their settlement; from 1 to 100000.
        #[serde(default = "default_messages")]
        pub max_outstanding_messages: u32,
        /// The most bytes held at once, at least 1B. A larger message is received alone.
        #[serde(default = "default_bytes")]
        pub max_outstanding_bytes: ByteCount,
        /// After this long without a message the connection is replaced, from 1s to 1h: the client library does not notice
        /// one that died silently.
        #[serde(default = "default_reconnect_after")]
        pub reconnect_after: HumanDuration,
        /// The subscription's topic, to which `onceward dlq redrive` sends letters back; by default it is read from the
        /// subscription. All subscriptions of the topic receive them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub topic: Option<String>,
    }
}

const fn default_ack_deadline() -> HumanDuration {
    HumanDuration::new(PubsubSubscriptionConfig::DEFAULT_ACK_DEADLINE)
}

const fn default_messages() -> u32 {
    PubsubSubscriptionConfig::DEFAULT_MAX_OUTSTANDING_MESSAGES
}

const fn default_bytes() -> ByteCount {
    ByteCount::mib(PubsubSubscriptionConfig::DEFAULT_MAX_OUTSTANDING_BYTES / (1024 * 1024))
}

const fn default_reconnect_after() -> HumanDuration {
    HumanDuration::new(PubsubSubscriptionConfig::DEFAULT_RECONNECT_AFTER)
}

impl PubsubSource {
    fn subscription_config(&self, context: &Context<'_>, name: &str) -> PubsubSubscriptionConfig {
        let mut subscription = PubsubSubscriptionConfig::new(name);
        subscription.ordered = self.ordered;
        subscription.ack_deadline = self.ack_deadline.get();
        subscription.max_outstanding_messages = self.max_outstanding_messages;
        subscription.max_outstanding_bytes = self.max_outstanding_bytes.get();
        subscription.reconnect_after = self.reconnect_after.get();
        let limits = PubsubSubscriptionConfig::CALL_TIMEOUT;
        subscription.call_timeout = context.store_call_limit().clamp(*limits.start(), *limits.end());
        subscription
    }

    fn config(&self, context: &Context<'_>, name: &str, own_headers: OwnHeaders) -> PubsubConfig {
        let mut config = PubsubConfig::new("");
        config.endpoint = self.connection().endpoint(context);
        config.subscription = self.subscription_config(context, name);
        config.subscription.own_headers = own_headers;
        config
    }

    fn full_subscription(&self) -> Result<String, Error> {
        Collection::Subscriptions.full_name(&self.subscription, self.project.as_deref())
    }

    fn full_topic(&self, name: &str) -> Result<String, Error> {
        Collection::Topics.full_name(name, self.project.as_deref())
    }

    /// The topic that redriven letters go to.
    async fn redrive_topic(&self, context: &Context<'_>) -> Result<String, Error> {
        if let Some(topic) = &self.topic {
            return self.full_topic(topic);
        }
        let endpoint = self.connection().endpoint(context);
        let status = PubsubSubscriptionStatus::read(&endpoint, &self.full_subscription()?).await;
        let what = "the topic of the subscription cannot be read; set topic in [source.pubsub]";
        let unknown = || error::config("send dead letters back", what);
        status.map_err(|error| unknown().with_source(error))?.topic.ok_or_else(unknown)
    }

    async fn open_publisher(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(PubsubPublisher::open(self.connection().endpoint(context)).await?))
    }

    /// Messages of an ordering key that run side by side, or by another key, are not in the order that `ordered` names.
    fn check_order(&self, context: &Context<'_>) -> Checked {
        let fix = r#"remove it, or write ordering = "key" with order_by = "broker", or remove ordered from [source.pubsub]"#;
        match context.pipeline.ordering {
            _ if !self.ordered => Ok(()),
            Ordering::BrokerKey => Ok(()),
            Ordering::By(_) => Err(Problem::new(
                "pipeline.order_by",
                "names another order than the subscription's own, which is by ordering key",
                fix,
            )),
            Ordering::Partition | Ordering::None => Err(Problem::new(
                "pipeline.ordering",
                "gives up the order of the ordering keys that the subscription keeps",
                fix,
            )),
        }
    }

    fn check_limits(&self, context: &Context<'_>) -> Checked {
        let messages = PubsubSubscriptionConfig::MAX_OUTSTANDING_MESSAGES;
        check::within(context, "max_outstanding_messages", self.max_outstanding_messages, messages)?;
        let bytes = PubsubSubscriptionConfig::MAX_OUTSTANDING_BYTES;
        check::within(context, "max_outstanding_bytes", self.max_outstanding_bytes.get(), bytes)?;
        let deadline = PubsubSubscriptionConfig::ACK_DEADLINE;
        check::duration(context, "ack_deadline", self.ack_deadline, deadline)?;
        if self.ack_deadline.get().subsec_nanos() > 0 {
            let problem = "has a fraction of a second, which Pub/Sub does not count";
            return Err(context.problem("ack_deadline", problem, "write whole seconds"));
        }
        let reconnect = PubsubSubscriptionConfig::RECONNECT_AFTER;
        check::duration(context, "reconnect_after", self.reconnect_after, reconnect)
    }
}

#[async_trait]
impl SourcePlugin for PubsubSource {
    fn describe(&self, _: &Context<'_>) -> String {
        let name = self.full_subscription().unwrap_or_else(|_| self.subscription.clone());
        format!("pubsub:{name}")
    }

    fn messaging_system(&self) -> Option<&'static str> {
        Some("gcp_pubsub")
    }

    fn facts(&self) -> SourceFacts {
        let default_ordering = if self.ordered { Ordering::BrokerKey } else { Ordering::None };
        SourceFacts { has_record_keys: true, default_ordering, reports_idle: false, ..SourceFacts::BROKER }
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        self.connection().check(context)?;
        let project = self.project.as_deref();
        check_name(context, "subscription", Collection::Subscriptions, &self.subscription, project)?;
        self.check_limits(context)?;
        if let Some(topic) = &self.topic {
            check_name(context, "topic", Collection::Topics, topic, project)?;
            let is_same = |to: &str| self.full_topic(to).ok() == self.full_topic(topic).ok();
            if context.dead_letter.is_some_and(|to| is_same(to.expose())) {
                return Err(Problem::new(
                    "dead_letter.to",
                    "is the topic that messages come from",
                    "give dead letters a topic of their own",
                ));
            }
        }
        self.check_order(context)
    }

    fn advice(&self, context: &Context<'_>) -> Vec<Finding> {
        let by_key = matches!(context.pipeline.ordering, Ordering::By(_) | Ordering::BrokerKey);
        let across_workers = (by_key && !self.ordered).then(|| {
            Problem::new(
                "pipeline.ordering",
                "holds within one worker only, since the subscription keeps no order itself",
                "run one worker, or use a subscription with message ordering and set ordered",
            )
            .into_warning("order-within-worker")
        });
        across_workers.into_iter().collect()
    }

    fn places(&self) -> Vec<Place> {
        self.topic.iter().map(|topic| place(self.connection(), topic)).collect()
    }

    async fn open(&self, context: &Context<'_>, parts: SourceParts) -> Result<Box<dyn Consumer>, Error> {
        let config = self.config(context, &self.subscription, parts.own_headers);
        Ok(Box::new(PubsubConsumer::open(config).await?))
    }

    async fn dead_letters(
        &self,
        context: &Context<'_>,
        to: &str,
        _: OwnHeaders,
    ) -> Result<DeadLetters, Error> {
        let topic = self.full_topic(to)?;
        check_topic(&self.connection().endpoint(context), &topic).await?;
        Ok(DeadLetters::new(self.open_publisher(context).await?, topic))
    }

    async fn letters(&self, context: &Context<'_>, from: &str, parts: SourceParts) -> Result<Letters, Error> {
        let is_topic =
            context.dead_letter.is_some_and(|to| to.expose() == from) || Collection::Topics.is_full(from);
        if is_topic {
            let what = "letters are received from a subscription of dead_letter.to, and not from the topic; name it with --from";
            return Err(error::config("take dead letters back", what));
        }
        let to = self.redrive_topic(context).await?;
        let mut config = self.config(context, from, parts.own_headers);
        config.subscription.ordered = false;
        let from = PubsubConsumer::open(config).await?;
        Ok(Letters { from: Box::new(from), to: self.open_publisher(context).await?, destinations: vec![to] })
    }

    async fn publisher(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        self.open_publisher(context).await
    }

    /// Pub/Sub itself does not report the number of waiting messages; Cloud Monitoring does, minutes later.
    async fn backlog(
        &self,
        context: &Context<'_>,
        _: &Scope,
        _: &dyn CheckpointStore,
    ) -> Result<Option<Backlog>, Error> {
        Reachability::of(&self.connection().endpoint(context))?.check().await.map(|()| None)
    }

    async fn dead_letter_status(&self, context: &Context<'_>, to: &str) -> Result<DeadLetterStatus, Error> {
        let place = self.full_topic(to)?;
        check_topic(&self.connection().endpoint(context), &place).await?;
        Ok(DeadLetterStatus { place, letters: None })
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<Vec<Finding>, Error> {
        let endpoint = self.connection().endpoint(context);
        Reachability::of(&endpoint)?.check().await?;
        let name = self.full_subscription()?;
        let status = PubsubSubscriptionStatus::read_if_offered(&endpoint, &name).await?;
        let mut findings = vec![source::answers(context, &self.describe(context), None)];
        let config = self.subscription_config(context, &name);
        let advice = advice::of(context, &config, &status).into_iter();
        findings.extend(advice.map(|advice| Finding::advised(context.table(), advice)));
        let consume = Permission::CONSUME;
        if consume.is_missing(&endpoint, &name).await? {
            findings.push(missing(context.table(), consume, &name));
        }
        Ok(findings)
    }

    async fn inspect_dead_letters(&self, context: &Context<'_>, to: &str) -> Result<Finding, Error> {
        let DeadLetterStatus { place, .. } = self.dead_letter_status(context, to).await?;
        let publish = Permission::PUBLISH;
        if publish.is_missing(&self.connection().endpoint(context), &place).await? {
            return Ok(missing("dead_letter.to", publish, &place));
        }
        Ok(Finding::ok("dead_letter.to", format!("{place} exists and can be published to")))
    }

    async fn temporary(&self, context: &Context<'_>, prefix: &str) -> Result<TemporarySource, Error> {
        let beside = self.full_subscription()?;
        let (parent, last) = beside.rsplit_once('/').unwrap_or_default();
        let last = format!("{prefix}.{last}");
        let name = format!("{parent}/{last}");
        let project = parent.strip_suffix(Collection::Subscriptions.word()).unwrap_or(parent);
        let topic = format!("{project}{}/{last}", Collection::Topics.word());
        let table = Self { subscription: name.clone(), topic: Some(topic.clone()), ..self.clone() };
        let (ordered, ack_deadline) = (self.ordered, self.ack_deadline.get());
        let wanted = TemporarySubscription { beside: &beside, name, topic, ordered, ack_deadline };
        let publisher = self.open_publisher(context).await?;
        temporary::create(&self.connection().endpoint(context), publisher, wanted, Box::new(table)).await
    }
}

fn missing(key: &str, permission: Permission, resource: &str) -> Finding {
    let message = format!("the permission {} on {resource} is missing", permission.name);
    Finding::error("pubsub-permission-missing", key, message, format!("grant {} on it", permission.role))
}

#[cfg(test)]
mod tests {
    use onceward_plugin::documentation::{SharedOption, assert_documented};

    use super::*;

    #[test]
    fn table_and_struct_document_the_ranges_and_defaults_of_the_code() {
        let [deadline, reconnect] =
            [PubsubSubscriptionConfig::ACK_DEADLINE, PubsubSubscriptionConfig::RECONNECT_AFTER].map(
                |range| {
                    format!(
                        "from {} to {}",
                        HumanDuration::new(*range.start()),
                        HumanDuration::new(*range.end())
                    )
                },
            );
        let messages = PubsubSubscriptionConfig::MAX_OUTSTANDING_MESSAGES;
        let least = PubsubSubscriptionConfig::MAX_OUTSTANDING_BYTES.start();
        let shared = |option, range, default| SharedOption {
            option,
            field: option,
            range: Some(range),
            default: Some(default),
        };
        assert_documented::<PubsubSource>(
            include_str!("../config.rs"),
            &[
                shared("ack_deadline", deadline, default_ack_deadline().to_string()),
                shared(
                    "max_outstanding_messages",
                    format!("from {} to {}", messages.start(), messages.end()),
                    default_messages().to_string(),
                ),
                shared("max_outstanding_bytes", format!("at least {least}B"), default_bytes().to_string()),
                shared("reconnect_after", reconnect, default_reconnect_after().to_string()),
            ],
        );
    }
}
