//! Maps `[source.sqs]`, `[handler.publish.sqs]` and `[outbox.sqs]` to their adapter.

use std::sync::Arc;
use std::time::Duration;

use onceward::pipeline::start_check;
use onceward::store::{Advice, AdviceLevel};
use onceward::{Consumer, DeadLetters, Error, ErrorKind, OwnHeaders, Publisher};
use onceward_sqs::{SqsConfig, SqsConsumer, SqsEndpoint, SqsPublisher, SqsQueueConfig, SqsQueueStatus};

use super::own_headers::own_headers;
use super::settings::pipeline_config;
use crate::config::{Config, OnMissingKey, OutboxSqs, SqsPlace, SqsSource, SqsTarget};

/// How long one call may take that sends messages.
const LONGEST_SEND: Duration = Duration::from_secs(10);

pub(super) async fn open(config: &Config, source: &SqsSource) -> Result<SqsConsumer, Error> {
    let mut options = SqsConfig::new("");
    options.endpoint = endpoint(source.place());
    options.queue = queue(config, source);
    options.queue.own_headers = own_headers(config)?;
    SqsConsumer::open(options).await
}

pub(super) async fn dead_letters(source: &SqsSource, to: &str) -> Result<DeadLetters, Error> {
    is_url(to)?;
    Ok(DeadLetters::new(publisher(source).await?, to))
}

/// Takes letters from the queue `place`, and gives them back to the source's.
pub(super) async fn letters(
    config: &Config,
    source: &SqsSource,
    place: &str,
    own: &OwnHeaders,
) -> Result<(Box<dyn Consumer>, Arc<dyn Publisher>, Vec<String>), Error> {
    is_url(place)?;
    let mut options = SqsConfig::new("");
    options.endpoint = endpoint(source.place());
    options.queue = queue(config, source);
    options.queue.url = place.to_owned();
    (options.queue.unwrap_sns, options.queue.own_headers) = (false, own.clone());
    let from = SqsConsumer::open(options).await?;
    Ok((Box::new(from), publisher(source).await?, vec![source.queue_url.expose().to_owned()]))
}

/// A publisher to the source's own region or endpoint.
pub(super) async fn publisher(source: &SqsSource) -> Result<Arc<dyn Publisher>, Error> {
    Ok(Arc::new(SqsPublisher::open(endpoint(source.place())).await?))
}

/// The publisher of `[outbox.sqs]`. Each row names its queue, so that none can be looked at.
pub(super) async fn outbox(target: &OutboxSqs) -> Result<Arc<dyn Publisher>, Error> {
    Ok(Arc::new(SqsPublisher::open(endpoint(target.place())).await?))
}

/// Asks the SQS of `[outbox.sqs]` for a word.
pub(super) async fn outbox_answers(target: &OutboxSqs) -> Result<(), Error> {
    endpoint(target.place()).check_connection().await
}

/// What waits in the queue for dead letters.
pub(super) async fn dead_letter_facts(source: &SqsSource, to: &str) -> Result<SqsQueueStatus, Error> {
    is_url(to)?;
    facts(source, to).await
}

fn is_url(to: &str) -> Result<(), Error> {
    if to.starts_with("https://") || to.starts_with("http://") {
        return Ok(());
    }
    let what =
        "with [source.sqs] it is the URL of a queue; write that, as the console and GetQueueUrl show it";
    Err(Error::new(ErrorKind::Config, "use dead_letter.to", what))
}

/// The publisher of `[handler.publish.sqs]` and its destination, which is there.
pub(super) async fn target(
    config: &Config,
    target: &SqsTarget,
) -> Result<(Arc<dyn Publisher>, String), Error> {
    let endpoint = endpoint(target.place());
    let client = endpoint.client().await;
    let url = target.queue_url.expose();
    // A queue that is missing would cost every message its attempts. To send needs no right to look at it.
    match SqsQueueStatus::read(&client, url).await {
        Err(error) if error.kind() == ErrorKind::Denied => {}
        read => {
            read?;
        }
    }
    let limit = config.handler.timeout().get().mul_f64(0.9).min(LONGEST_SEND);
    Ok((Arc::new(SqsPublisher::from_client(client).call_timeout(limit)), url.to_owned()))
}

/// What SQS says of a queue where the source is.
pub(super) async fn facts(source: &SqsSource, queue_url: &str) -> Result<SqsQueueStatus, Error> {
    let client = endpoint(source.place()).client().await;
    SqsQueueStatus::read(&client, queue_url).await
}

/// How what SQS says of the queue goes with the configuration.
pub(super) async fn advice(config: &Config, source: &SqsSource) -> Result<Vec<Advice>, Error> {
    let facts = facts(source, source.queue_url.expose()).await?;
    let mut found = vec![Advice::new(AdviceLevel::Ok, facts.to_string())];
    found.extend(start_check::advise(
        &pipeline_config(config, false),
        &facts.capabilities(&queue(config, source)),
    ));
    if facts.content_based_deduplication {
        found.push(Advice::new(
            AdviceLevel::Warning,
            "the queue takes a hash of the body for a missing deduplication id: two messages with the same body within five \
             minutes are one, whatever their keys; have producers set deduplication ids, or turn ContentBasedDeduplication \
             off",
        ));
    }
    if facts.max_receive_count.is_none() && config.policy.on_missing_key == OnMissingKey::Reject {
        found.push(Advice::new(
            AdviceLevel::Warning,
            "the queue has no redrive policy, so a message that is rejected for want of a key comes again for as long as the \
             queue keeps it; give the queue one, or write another on_missing_key in [policy]",
        ));
    }
    Ok(found)
}

fn queue(config: &Config, source: &SqsSource) -> SqsQueueConfig {
    let mut queue = SqsQueueConfig::new(source.queue_url.expose());
    queue.visibility = source.visibility.get();
    queue.pollers = source.pollers as usize;
    queue.unwrap_sns = source.unwrap_sns;
    // A little less than the limit of a call, so that what was wrong is known before the call is given up.
    let limit = config.store.limits().timeout.get().mul_f64(0.9);
    queue.call_timeout = limit.clamp(Duration::from_millis(100), Duration::from_secs(60));
    queue
}

fn endpoint(place: SqsPlace<'_>) -> SqsEndpoint {
    let mut endpoint = SqsEndpoint::default();
    endpoint.region = place.region.map(str::to_owned);
    endpoint.allow_plaintext = place.allow_plaintext;
    endpoint.url = place.endpoint.map(|url| url.expose().to_owned());
    endpoint
}
