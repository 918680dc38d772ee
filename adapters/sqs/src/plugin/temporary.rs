//! A temporary queue beside the source's: [`create`].

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use onceward::{Error, ErrorKind, Publisher};
use onceward_plugin::value::Address;
use onceward_plugin::{SourcePlugin, TemporarySource};

use crate::error;

/// The timeout of a request.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest name of a queue.
const LONGEST_NAME: usize = 80;
/// SQS deletes messages that are left by itself after this time.
const RETENTION_SECONDS: &str = "3600";
/// The end of the name of a FIFO queue.
const FIFO: &str = ".fifo";

/// Creates a queue, a FIFO queue if the source's is one, named as that with `prefix` in front of it. `table` is made of its URL.
pub(super) async fn create(
    client: Client,
    publisher: Arc<dyn Publisher>,
    beside: &str,
    prefix: &str,
    table: impl FnOnce(Address) -> Box<dyn SourcePlugin>,
) -> Result<TemporarySource, Error> {
    let original = beside.rsplit('/').next().unwrap_or_default();
    let is_fifo = original.ends_with(FIFO);
    let name = format!("{prefix}-{original}");
    let operation = format!("create the temporary queue {name}");
    if name.len() > LONGEST_NAME {
        let what = format!("its name would be longer than {LONGEST_NAME} characters");
        return Err(Error::new(ErrorKind::Config, operation, what));
    }
    error::require_region(&client, operation.clone())?;
    let mut request =
        client.create_queue().queue_name(&name).attributes(Name::MessageRetentionPeriod, RETENTION_SECONDS);
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

    let (table, removal) = (table(Address::from(url.clone())), remove(client, url.clone()));
    let mut temporary = TemporarySource::new(format!("queue {name}"), table, publisher, url, removal);
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
