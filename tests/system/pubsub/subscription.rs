//! A subscription of a Pub/Sub server, with a topic of its own, and its producers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use onceward_test_servers::pubsub::{Delivered, Pubsub};
use serde_json::{Value, json};

use crate::pair::Waiting;

/// A topic and a subscription of it, for one test.
pub(crate) struct Subscription<'s> {
    pub(crate) server: &'s Pubsub,
    name: String,
    /// Its full name.
    pub(crate) topic: String,
    pub(crate) full_name: String,
    is_ordered: bool,
}

impl Subscription<'static> {
    /// On the server that the tests share, with properties as in the REST call that creates one.
    pub(crate) fn create(name: &str, properties: &Value) -> Self {
        Self::create_on(Pubsub::shared(), name, properties)
    }

    /// As [`create`](Self::create): with message ordering.
    pub(crate) fn ordered(name: &str) -> Self {
        Self::create(name, &json!({"enableMessageOrdering": true}))
    }
}

impl<'s> Subscription<'s> {
    /// On a server of a test's own.
    pub(crate) fn create_on(server: &'s Pubsub, name: &str, properties: &Value) -> Self {
        let topic = server.topic(name);
        let full_name = server.subscription_with(name, &topic, properties);
        let is_ordered = properties["enableMessageOrdering"] == true;
        Self { server, name: name.to_owned(), topic, full_name, is_ordered }
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.is_ordered
    }

    /// Messages that wait, and those of them that a client has.
    pub(crate) fn depth(&self) -> (u64, u64) {
        self.server.depth(&self.full_name)
    }

    /// What the server knows of the messages that it has delivered, each with its `id`.
    pub(super) fn delivered(&self) -> Vec<(String, Delivered)> {
        let delivered = self.server.delivered(&self.full_name).into_iter();
        delivered
            .map(|message| {
                let data = BASE64.decode(&message.data).expect("base64");
                let order: Value = serde_json::from_slice(&data).expect("a line is JSON");
                (order["id"].as_str().expect("an id").to_owned(), message)
            })
            .collect()
    }
}

impl Waiting for Subscription<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    /// The `lane` of a line, if it has one, is its ordering key.
    fn publish(&self, lines: &[String]) {
        let message = |line: &String| {
            let parsed: Value = serde_json::from_str(line).expect("a line is JSON");
            let lane = &parsed["lane"];
            let key = lane.as_str().map_or_else(|| lane.to_string(), str::to_owned);
            let key = if lane.is_null() { String::new() } else { key };
            json!({"data": BASE64.encode(line), "orderingKey": key})
        };
        self.server.publish(&self.topic, &lines.iter().map(message).collect::<Vec<_>>());
    }

    fn is_empty(&self) -> bool {
        self.depth() == (0, 0)
    }
}
