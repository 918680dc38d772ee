//! The broker conformance suite on a real server with SQS's strict limits: a standard queue and a FIFO queue.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use onceward::Error;
use onceward::adapter::{Acker, Capabilities, Consumer, Delivery};
use onceward::testing::broker::BrokerHarness;
use onceward_sqs::SqsConsumer;
use onceward_test_servers::elasticmq::ElasticMq;

use crate::support;

/// A queue of its own on a server that the tests share.
struct SqsHarness {
    client: Client,
    url: String,
    visibility: Duration,
    pollers: usize,
}

impl SqsHarness {
    async fn new(name: &str) -> Self {
        let client = support::client(ElasticMq::shared().port());
        let url = support::create(&client, name).await;
        // This server takes its time over many groups, and the suite sends no heartbeat meanwhile.
        let visibility = Duration::from_secs(if name.ends_with(".fifo") { 15 } else { 3 });
        Self { client, url, visibility, pollers: 4 }
    }

    /// For checks that hold hundreds of groups unsettled. On this server a receive from a FIFO queue takes time in proportion
    /// to what is in flight, and concurrent receives only slow each other down: 600 groups take a raw client 11 s on an idle
    /// machine, whether it has one poller or four.
    async fn with_many_groups(name: &str) -> Self {
        Self { visibility: Duration::from_secs(300), pollers: 1, ..Self::new(name).await }
    }
}

/// A consumer whose messages are each in a group of their own: between groups SQS keeps no order.
struct AcrossGroups(SqsConsumer);

#[async_trait]
impl Consumer for AcrossGroups {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.capabilities();
        capabilities.ordered = false;
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        self.0.acker()
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        self.0.receive().await
    }

    async fn is_idle(&mut self) -> Option<bool> {
        self.0.is_idle().await
    }

    async fn close(&mut self) -> Result<(), Error> {
        self.0.close().await
    }
}

#[async_trait]
impl BrokerHarness for SqsHarness {
    type Consumer = AcrossGroups;

    /// A group for each message: SQS delivers no more of a group while some of it is in flight, and the suite takes more
    /// than one batch before it settles. Order within groups is shown by `tests/pipeline.rs`.
    async fn publish(&self, payloads: &[String]) {
        support::send(&self.client, &self.url, payloads, |number| format!("group-{number}")).await;
    }

    async fn open(&self) -> AcrossGroups {
        let mut queue = support::quick(&self.url);
        queue.visibility = self.visibility;
        queue.pollers = self.pollers;
        AcrossGroups(SqsConsumer::from_client(self.client.clone(), queue).await.unwrap())
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(240)
    }

    fn quiet(&self) -> Duration {
        Duration::from_millis(700)
    }
}

mod standard {
    use super::*;
    onceward::broker_conformance!(SqsHarness::new("standard").await);
}

mod fifo {
    use super::*;
    onceward::broker_conformance_tests! { SqsHarness::with_many_groups("ordered.fifo").await; deliveries:
        every_published_message_is_delivered,
        a_dropped_receive_loses_no_delivery,
    }
    onceward::broker_conformance_tests! { SqsHarness::new("ordered.fifo").await; deliveries:
        every_delivery_has_a_tag_of_its_own,
        an_ordered_source_keeps_the_order,
        a_position_is_a_messages_own_and_stays,
        a_source_ends_if_it_says_so,
        what_was_not_acked_comes_again_after_closing,
        what_was_not_acked_comes_again_after_a_drop,
        what_was_acked_does_not_come_again,
    }
    onceward::broker_conformance_tests! { SqsHarness::new("ordered.fifo").await; settlements:
        a_batch_is_settled_in_any_order,
        an_empty_batch_has_no_results,
        one_foreign_item_fails_alone_and_settles_nothing,
        a_retried_message_comes_again_with_another_tag,
        a_delayed_retry_keeps_its_delay,
        an_abandoned_message_is_given_back,
        a_late_settlement_is_answered,
        an_extended_delivery_stays_ours,
    }
}
