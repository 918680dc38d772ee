//! `[source.sqs]`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceward::adapter::{CheckpointStore, Consumer};
use onceward::pipeline::config::{OnMissingKey, Ordering};
use onceward::pipeline::start_check;
use onceward::store::Advice;
use onceward::{DeadLetters, Error, ErrorKind, OwnHeaders, Publisher, Scope};
use onceward_plugin::value::{Address, HumanDuration};
use onceward_plugin::{
    Backlog, Checked, Context, DeadLetterStatus, Exposure, Finding, Letters, Place, Problem, Secrets,
    SourceFacts, SourceParts, SourcePlugin, TemporarySource, check, source,
};

use super::connection::sqs_table;
use super::temporary;
use crate::{SqsConfig, SqsConsumer, SqsPublisher, SqsQueueConfig, SqsQueueStatus};

sqs_table! {
    /// An SQS queue. Credentials come from the standard AWS chain.
    SqsSource [] {
        /// The queue's URL. One that ends in `.fifo` is a FIFO queue.
        pub queue_url: Address,
        /// The most concurrent long polls, from 1 to 64.
        #[serde(default = "default_pollers")]
        pub pollers: usize,
        /// The visibility timeout of a received message, from 1s to 12h in whole seconds. It is extended as long as the
        /// message is held, so it bounds only how long a dead worker's messages wait.
        #[serde(default = "default_visibility")]
        pub visibility: HumanDuration,
        /// Takes the message out of the envelope that SNS puts around it; a message without an envelope is malformed then.
        #[serde(default)]
        pub unwrap_sns: bool,
    }
}

const fn default_pollers() -> usize {
    SqsQueueConfig::DEFAULT_POLLERS
}

const fn default_visibility() -> HumanDuration {
    HumanDuration::new(SqsQueueConfig::DEFAULT_VISIBILITY)
}

/// How long a receive of dead letters waits: a command that has ended leaves none in flight for longer.
const LETTERS_WAIT: Duration = Duration::from_secs(2);

impl SqsSource {
    fn is_fifo(&self) -> bool {
        self.queue_url.expose().ends_with(".fifo")
    }

    /// A failed message of a FIFO queue blocks the rest of its group, so that the queue's own order can be kept and no other.
    fn check_order(&self, context: &Context<'_>) -> Checked {
        let fix = r#"remove it, or write ordering = "key" with order_by = "broker", or use a standard queue"#;
        match context.pipeline.ordering {
            _ if !self.is_fifo() => Ok(()),
            Ordering::BrokerKey => Ok(()),
            Ordering::By(_) => Err(Problem::new(
                "pipeline.order_by",
                "names another order than a FIFO queue's own, which is by message group",
                fix,
            )),
            Ordering::Partition | Ordering::None => Err(Problem::new(
                "pipeline.ordering",
                "gives up the order of the message groups that a FIFO queue is there to keep",
                fix,
            )),
        }
    }

    fn queue(&self, context: &Context<'_>, url: &str) -> SqsQueueConfig {
        let mut queue = SqsQueueConfig::new(url);
        queue.visibility = self.visibility.get();
        queue.pollers = self.pollers;
        queue.unwrap_sns = self.unwrap_sns;
        let limits = SqsQueueConfig::CALL_TIMEOUT;
        queue.call_timeout = context.store_call_limit().clamp(*limits.start(), *limits.end());
        queue
    }

    fn options(&self, queue: SqsQueueConfig) -> SqsConfig {
        let mut options = SqsConfig::new("");
        options.endpoint = self.connection().endpoint();
        options.queue = queue;
        options
    }

    async fn facts_of(&self, queue_url: &str) -> Result<SqsQueueStatus, Error> {
        let client = self.connection().endpoint().client().await;
        SqsQueueStatus::read(&client, queue_url).await
    }

    async fn open_publisher(&self) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(SqsPublisher::open(self.connection().endpoint()).await?))
    }

    fn broker_advice(&self, context: &Context<'_>, facts: &SqsQueueStatus) -> Vec<Advice> {
        let mut found = vec![Advice::ok(facts.to_string())];
        let queue = self.queue(context, self.queue_url.expose());
        found.extend(start_check::advise(context.pipeline, &facts.capabilities(&queue)));
        if facts.content_based_deduplication {
            found.push(Advice::warning("sqs-content-based-deduplication", "the queue takes a hash of the body for a missing deduplication id: two messages with the same body within five \
                 minutes are one, whatever their keys; have producers set deduplication ids, or turn \
                 ContentBasedDeduplication off",
            ));
        }
        let rejects = context.pipeline.policies.on_missing_key == OnMissingKey::Reject;
        if facts.max_receive_count.is_none() && rejects {
            found.push(Advice::warning("sqs-no-redrive-policy", "the queue has no redrive policy, so a message that is rejected because it has no key is redelivered for as long \
                 as the queue keeps it; give the queue one, or write another on_missing_key in [policy]",
            ));
        }
        found
    }
}

impl Secrets for SqsSource {
    fn exposure(&self) -> Option<Exposure> {
        self.connection().exposure(Some(&self.queue_url))
    }
}

#[async_trait]
impl SourcePlugin for SqsSource {
    fn describe(&self, _: &Context<'_>) -> String {
        format!("sqs:{}", self.queue_url.redacted())
    }

    fn messaging_system(&self) -> Option<&'static str> {
        Some("aws_sqs")
    }

    fn facts(&self) -> SourceFacts {
        let default_ordering = if self.is_fifo() { Ordering::BrokerKey } else { Ordering::None };
        SourceFacts { has_record_keys: true, default_ordering, ..SourceFacts::BROKER }
    }

    fn check(&self, context: &Context<'_>) -> Checked {
        check::url(context, "queue_url", &self.queue_url, &["http", "https"])?;
        self.connection().check(context)?;
        check::within(context, "pollers", self.pollers, SqsQueueConfig::POLLERS)?;
        check::duration(context, "visibility", self.visibility, SqsQueueConfig::VISIBILITY)?;
        if self.visibility.get().subsec_nanos() > 0 {
            return Err(context.problem(
                "visibility",
                "has a fraction of a second, which SQS does not count",
                "write whole seconds",
            ));
        }
        let is_source = |to: &Address| check::is_same_url(to.expose(), self.queue_url.expose());
        if context.dead_letter.is_some_and(is_source) {
            return Err(Problem::new(
                "dead_letter.to",
                "is the queue that messages come from",
                "give dead letters a destination of their own",
            ));
        }
        self.check_order(context)
    }

    fn advice(&self, context: &Context<'_>) -> Vec<Finding> {
        let handler = context.handler;
        // Extension keeps a message invisible for as long as its handler runs, but not for a worker that is paused or cut off.
        let short_visibility = (self.visibility.get() < handler.timeout).then(|| {
            context.problem(
                "visibility",
                format!(
                    "is shorter than {}.timeout, so messages of a worker that is paused or cut off for that long may be received by \
                     another one while their handlers run; they run twice only if that lasts longer than the store's lease",
                    handler.table
                ),
                "raise visibility, unless a dead worker's messages must be redelivered sooner",
            ).into_warning("sqs-visibility-short")
        });
        let by_key = matches!(context.pipeline.ordering, Ordering::By(_) | Ordering::BrokerKey);
        let order_across_workers = (by_key && !self.is_fifo()).then(|| {
            Problem::new(
                "pipeline.ordering",
                "holds within one worker only, since a standard queue keeps no order itself",
                "run one worker, or use a FIFO queue",
            )
            .into_warning("order-within-worker")
        });
        short_visibility.into_iter().chain(order_across_workers).collect()
    }

    fn places(&self) -> Vec<Place> {
        vec![place(&self.queue_url)]
    }

    async fn open(&self, context: &Context<'_>, parts: SourceParts) -> Result<Box<dyn Consumer>, Error> {
        let mut options = self.options(self.queue(context, self.queue_url.expose()));
        options.queue.own_headers = parts.own_headers;
        Ok(Box::new(SqsConsumer::open(options).await?))
    }

    async fn dead_letters(&self, _: &Context<'_>, to: &str, _: OwnHeaders) -> Result<DeadLetters, Error> {
        require_url(to)?;
        Ok(DeadLetters::new(self.open_publisher().await?, to))
    }

    async fn letters(&self, context: &Context<'_>, from: &str, parts: SourceParts) -> Result<Letters, Error> {
        require_url(from)?;
        let mut options = self.options(self.queue(context, from));
        (options.queue.unwrap_sns, options.queue.own_headers) = (false, parts.own_headers);
        options.queue.wait = LETTERS_WAIT;
        let from = SqsConsumer::open(options).await?;
        Ok(Letters {
            from: Box::new(from),
            to: self.open_publisher().await?,
            destinations: vec![self.queue_url.expose().to_owned()],
        })
    }

    async fn publisher(&self, _: &Context<'_>) -> Result<Arc<dyn Publisher>, Error> {
        self.open_publisher().await
    }

    async fn backlog(
        &self,
        _: &Context<'_>,
        _: &Scope,
        _: &dyn CheckpointStore,
    ) -> Result<Option<Backlog>, Error> {
        Ok(Some(waiting(&self.facts_of(self.queue_url.expose()).await?)))
    }

    async fn dead_letter_status(&self, context: &Context<'_>, to: &str) -> Result<DeadLetterStatus, Error> {
        require_url(to)?;
        let found = self.facts_of(to).await?;
        let place = context.dead_letter.map(|to| to.redacted()).unwrap_or_default();
        let letters = found.visible.saturating_add(found.in_flight).saturating_add(found.delayed);
        Ok(DeadLetterStatus { place, letters: Some(letters) })
    }

    async fn inspect(&self, context: &Context<'_>) -> Result<Vec<Finding>, Error> {
        let facts = self.facts_of(self.queue_url.expose()).await?;
        let mut findings = vec![source::answers(context, &self.describe(context), Some(waiting(&facts)))];
        let advice = self.broker_advice(context, &facts).into_iter();
        findings.extend(advice.map(|advice| Finding::advised(context.table(), advice)));
        Ok(findings)
    }

    async fn temporary(&self, _: &Context<'_>, prefix: &str) -> Result<TemporarySource, Error> {
        let client = self.connection().endpoint().client().await;
        let table = |queue_url| -> Box<dyn SourcePlugin> {
            Box::new(Self { queue_url, unwrap_sns: false, ..self.clone() })
        };
        temporary::create(client, self.open_publisher().await?, self.queue_url.expose(), prefix, table).await
    }
}

pub(super) fn place(queue_url: &Address) -> Place {
    let url = check::plain_url(queue_url.expose());
    Place { system: "sqs", servers: vec![url.clone()], name: url }
}

fn waiting(facts: &SqsQueueStatus) -> Backlog {
    let messages = Some(facts.visible.saturating_add(facts.delayed));
    Backlog { messages, bytes: None, consumers: None }
}

fn require_url(to: &str) -> Result<(), Error> {
    if to.starts_with("https://") || to.starts_with("http://") {
        return Ok(());
    }
    let what =
        "with [source.sqs] it is the URL of a queue; write that, as the console and GetQueueUrl show it";
    Err(Error::new(ErrorKind::Config, "use dead_letter.to", what))
}

#[cfg(test)]
mod tests {
    use onceward_plugin::documentation::{SharedOption, assert_documented};

    use super::*;

    #[test]
    fn table_and_struct_document_the_ranges_and_defaults_of_the_code() {
        let (visibility, pollers) = (SqsQueueConfig::VISIBILITY, SqsQueueConfig::POLLERS);
        let [shortest, longest] = [visibility.start(), visibility.end()].map(|one| HumanDuration::new(*one));
        assert_documented::<SqsSource>(
            include_str!("../config.rs"),
            &[
                SharedOption {
                    option: "visibility",
                    field: "visibility",
                    range: Some(format!("from {shortest} to {longest}")),
                    default: Some(default_visibility().to_string()),
                },
                SharedOption {
                    option: "pollers",
                    field: "pollers",
                    range: Some(format!("from {} to {}", pollers.start(), pollers.end())),
                    default: Some(default_pollers().to_string()),
                },
            ],
        );
    }
}
