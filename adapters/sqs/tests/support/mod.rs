//! Shared test support: clients and queues on a real server.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod fake;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Region};
use aws_sdk_sqs::types::{QueueAttributeName, SendMessageBatchRequestEntry as Entry};
use onceward_sqs::SqsQueueConfig;

/// A client of a server on the loopback.
pub fn client(port: u16) -> Client {
    let credentials =
        Credentials::builder().access_key_id("id").secret_access_key("secret").provider_name("test").build();
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("elasticmq"))
        .endpoint_url(format!("http://127.0.0.1:{port}"))
        .credentials_provider(credentials)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

/// A queue of its own: FIFO if the name ends so. Its URL leads through `client`'s endpoint.
pub async fn create(client: &Client, name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut request = client.create_queue();
    if name.ends_with(".fifo") {
        request = request.attributes(QueueAttributeName::FifoQueue, "true");
    }
    let answer = request.queue_name(format!("q{number}-{name}")).send().await.unwrap();
    answer.queue_url.unwrap()
}

/// Sends bodies; `group` names the message group of each in a FIFO queue.
pub async fn send(client: &Client, url: &str, bodies: &[String], group: impl Fn(usize) -> String) {
    for (number, chunk) in bodies.chunks(10).enumerate() {
        let entries = chunk.iter().enumerate().map(|(place, body)| {
            let at = number * 10 + place;
            let mut entry = Entry::builder().id(at.to_string()).message_body(body);
            if url.ends_with(".fifo") {
                entry = entry.message_group_id(group(at)).message_deduplication_id(format!("{at}"));
            }
            entry.build().unwrap()
        });
        let answer = client.send_message_batch().queue_url(url).set_entries(Some(entries.collect()));
        assert!(answer.send().await.unwrap().failed.is_empty());
    }
}

/// How many messages a queue holds: visible, in flight.
pub async fn depth(client: &Client, url: &str) -> (u64, u64) {
    let facts = onceward_sqs::SqsQueueStatus::read(client, url).await.unwrap();
    (facts.visible + facts.delayed, facts.in_flight)
}

/// A configuration with short times.
pub fn quick(url: &str) -> SqsQueueConfig {
    let mut queue = SqsQueueConfig::new(url);
    queue.visibility = Duration::from_secs(3);
    queue.wait = Duration::from_secs(1);
    queue
}

/// Waits until `so`, asking every 20 ms, for at most `limit`.
pub async fn until(limit: Duration, what: &str, mut so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + limit;
    while !so().await {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The numbers from 0 on, as bodies.
pub fn bodies(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// A queue whose messages are redelivered only after longer than a test takes.
pub fn patient(fake: &fake::FakeSqs) -> SqsQueueConfig {
    let mut queue = quick(&fake.url());
    queue.visibility = Duration::from_secs(300);
    queue
}
