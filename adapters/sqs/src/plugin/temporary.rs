//! A temporary queue beside the source's: [`create`].

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use onceward::{Error, ErrorKind};
use onceward_plugin::TemporarySource;
use onceward_plugin::value::Address;

use super::source::SqsSource;
use crate::error;

/// The timeout of a request.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest name of a queue.
const LONGEST_NAME: usize = 80;
/// SQS deletes messages that are left by itself after so many seconds, its least.
const RETENTION: &str = "3600";

/// Creates a queue of the source's type, named as that with `suffix` behind it.
pub(super) async fn create(source: &SqsSource, suffix: &str) -> Result<TemporarySource, Error> {
    let is_fifo = source.is_fifo();
    let original = source.queue_url.expose().rsplit('/').next().unwrap_or_default();
    let ending = if is_fifo { ".fifo" } else { "" };
    let name = format!("{}-{suffix}{ending}", original.strip_suffix(ending).unwrap_or(original));
    let operation = format!("create the temporary queue {name}");
    if name.len() > LONGEST_NAME {
        let what = format!("its name would be longer than {LONGEST_NAME} characters");
        return Err(Error::new(ErrorKind::Config, operation, what));
    }
    let publisher = source.open_publisher().await?;
    let client = source.endpoint().client().await;
    error::require_region(&client, operation.clone())?;
    let mut request =
        client.create_queue().queue_name(&name).attributes(Name::MessageRetentionPeriod, RETENTION);
    if is_fifo {
        request = request.attributes(Name::FifoQueue, "true");
    }
    let created = tokio::time::timeout(LIMIT, request.send())
        .await
        .map_err(|_| error::timeout(operation.clone()))?
        .map_err(|error| error::classify(operation.clone(), &error))?;
    let Some(url) = created.queue_url else {
        return Err(Error::new(ErrorKind::Unknown, operation, "SQS reports no URL of it"));
    };

    let table = SqsSource { queue_url: Address::from(url.clone()), unwrap_sns: false, ..source.clone() };
    let removal = remove(client, url.clone());
    let mut temporary =
        TemporarySource::new(format!("queue {name}"), Box::new(table), publisher, url, removal);
    // Within five minutes it drops a message whose deduplication id it has seen.
    temporary.delivers_copies = !is_fifo;
    Ok(temporary)
}

async fn remove(client: Client, url: String) -> Result<(), Error> {
    let operation = || format!("remove the temporary queue {url}");
    tokio::time::timeout(LIMIT, client.delete_queue().queue_url(&url).send())
        .await
        .map_err(|_| error::timeout(operation()))?
        .map_err(|error| error::classify(operation(), &error))?;
    Ok(())
}
