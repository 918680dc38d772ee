//! A queue of the SQS-compatible server that the tests of this process share, and its producers.

use aws_credential_types::Credentials;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Region};
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use onceward::{Outgoing, Publisher};
use onceward_sqs::{SqsPublisher, SqsQueueStatus};
use onceward_test_servers::elasticmq::ElasticMq;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::pair::Waiting;

pub(crate) const REGION: &str = "elasticmq";

/// A queue of its own for one test; FIFO if its name ends so.
pub(crate) struct Queue {
    pub(super) name: String,
    pub(crate) url: String,
    runtime: Runtime,
    client: Client,
}

impl Queue {
    /// Creates `name`, with such attributes.
    pub(crate) fn create(name: &str, attributes: &[(Attribute, &str)]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let client = client();
        let mut request = client.create_queue().queue_name(name);
        if name.ends_with(".fifo") {
            request = request.attributes(Attribute::FifoQueue, "true");
        }
        for (attribute, value) in attributes {
            request = request.attributes(attribute.clone(), *value);
        }
        let created = runtime.block_on(request.send()).expect("a queue");
        Self { name: name.to_owned(), url: created.queue_url.expect("its URL"), runtime, client }
    }

    /// Its name in policies.
    pub(super) fn arn(&self) -> String {
        let request =
            self.client.get_queue_attributes().queue_url(&self.url).attribute_names(Attribute::QueueArn);
        let answer = self.runtime.block_on(request.send()).expect("attributes");
        answer.attributes.and_then(|mut all| all.remove(&Attribute::QueueArn)).expect("its ARN")
    }

    /// Messages in it: (to be delivered, delivered and not deleted).
    pub(super) fn depth(&self) -> (u64, u64) {
        let facts = self.runtime.block_on(SqsQueueStatus::read(&self.client, &self.url)).expect("attributes");
        (facts.visible + facts.delayed, facts.in_flight)
    }
}

impl Waiting for Queue {
    fn name(&self) -> &str {
        &self.name
    }

    /// In a FIFO queue the `lane` of a line is its group.
    fn publish(&self, lines: &[String]) {
        let publisher = SqsPublisher::from_client(self.client.clone());
        let message = |(number, line): (usize, &String)| {
            let parsed: Value = serde_json::from_str(line).expect("a line is JSON");
            Outgoing {
                destination: self.url.clone(),
                // Copies are messages of their own here: a FIFO queue would swallow a repeated id.
                id: number.to_string(),
                order_key: Some(parsed["lane"].to_string().into()),
                payload: line.as_bytes().to_vec().into(),
                ..Outgoing::default()
            }
        };
        let batch: Vec<_> = lines.iter().enumerate().map(message).collect();
        for published in self.runtime.block_on(publisher.publish(&batch)) {
            published.expect("a confirm");
        }
    }

    fn is_empty(&self) -> bool {
        self.depth() == (0, 0)
    }
}

/// The names of the queues that begin with `prefix`.
pub(crate) fn names(prefix: &str) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listed = runtime.block_on(client().list_queues().queue_name_prefix(prefix).send()).expect("a list");
    listed.queue_urls.unwrap_or_default()
}

fn client() -> Client {
    let credentials =
        Credentials::builder().access_key_id("any").secret_access_key("any").provider_name("test").build();
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(ElasticMq::shared().endpoint())
        .credentials_provider(credentials)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}
