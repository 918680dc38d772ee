//! A private server of Google Cloud Pub/Sub's protocol: [`Pubsub`].

mod control;
mod program;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::Leashed;

/// The project of all topics and subscriptions.
pub const PROJECT: &str = "onceward-tests";

/// The service's limit is 1000.
const PUBLISHED_AT_ONCE: usize = 500;

const START_LIMIT: Duration = Duration::from_secs(60);

/// A Pub/Sub server of its own, on a free loopback port: `pstest` of Google's Go client, with what it lacks added around it.
/// The heading of `server/main.go` says what that is, and how it still differs from the service.
///
/// It speaks gRPC and REST on one port, without TLS, and has no authentication. Ack deadlines have the service's limits, 10 s
/// to 600 s. Topics, subscriptions and messages live in memory: they survive [`stop`](Self::stop), and end with the process.
#[derive(Debug)]
pub struct Pubsub {
    // Dropped first: the server goes before its folder.
    server: Leashed,
    _folder: TempDir,
    port: u16,
    control: u16,
}

/// What the server knows of a message that it has delivered from a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The id that the server gave it.
    pub id: String,
    /// Its data, base64.
    pub data: String,
    /// Its ordering key, empty if it has none.
    pub ordering_key: String,
    /// How often it was sent to a client.
    pub deliveries: u64,
    /// How often it was acked; an ack that was refused does not count.
    pub acks: u64,
    /// Acks, nacks and extensions after the lease had ended.
    pub late: u64,
    /// How often it was given back.
    pub nacks: u64,
    /// How often its lease was extended.
    pub extensions: u64,
    /// Whether it was sent to the subscription's own dead-letter topic.
    pub dead: bool,
}

impl Pubsub {
    /// Starts a server and waits until it answers (about 0.1 s). The first call on a machine builds it, by Go.
    ///
    /// # Panics
    /// Go is not installed, or it does not start; the message says what to do.
    #[must_use]
    pub fn start() -> Self {
        match Self::try_start() {
            Ok(server) => server,
            Err(error) => panic!("the Pub/Sub server does not start: {error}"),
        }
    }

    /// The server that the tests of one process share. They keep apart by the names of their topics and subscriptions, and
    /// leave it running.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Pubsub> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn try_start() -> io::Result<Self> {
        let program = program::program()?;
        let folder = tempfile::Builder::new().prefix("pubsub-").tempdir()?;
        let (port, control) = (free_port()?, free_port()?);
        let output = folder.path().join("output");
        let file = fs::File::create(&output)?;
        let mut command = Command::new(program);
        command.args(["-port", &port.to_string(), "-control", &control.to_string()]);
        command.current_dir(folder.path()).stdout(file.try_clone()?).stderr(file);
        let mut server = Leashed::spawn_in(folder.path(), &mut command)?;
        let end = Instant::now() + START_LIMIT;
        // The control port opens last.
        while TcpStream::connect((Ipv4Addr::LOCALHOST, control)).is_err() {
            let ended = server.try_wait()?;
            if ended.is_some() || Instant::now() >= end {
                let said = fs::read_to_string(output).unwrap_or_default();
                return Err(io::Error::other(format!("ended: {ended:?}; it said: {said}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { server, _folder: folder, port, control })
    }

    /// The port of the service.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, for a proxy.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The endpoint to give to a client, for gRPC and for REST.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Creates a topic; returns its full name, `projects/…/topics/NAME`.
    ///
    /// # Panics
    /// There is one already.
    #[must_use]
    pub fn topic(&self, name: &str) -> String {
        self.topic_with(name, &json!({}))
    }

    /// As [`topic`](Self::topic), with properties as in the REST call that creates one.
    ///
    /// # Panics
    /// There is one already, or a property is invalid.
    #[must_use]
    pub fn topic_with(&self, name: &str, properties: &Value) -> String {
        let name = format!("projects/{PROJECT}/topics/{name}");
        self.call("PUT", &format!("/v1/{name}"), &properties.to_string());
        name
    }

    /// Creates a subscription of a topic, which is given by its full name, with the shortest ack deadline (10 s). Returns its
    /// full name, `projects/…/subscriptions/NAME`.
    ///
    /// # Panics
    /// There is one already, or there is no such topic.
    #[must_use]
    pub fn subscription(&self, name: &str, topic: &str) -> String {
        self.subscription_with(name, topic, &json!({}))
    }

    /// As [`subscription`](Self::subscription), with properties as in the REST call that creates one:
    /// `ackDeadlineSeconds`, `enableMessageOrdering`, `enableExactlyOnceDelivery`, `messageRetentionDuration`,
    /// `retryPolicy`, `deadLetterPolicy`.
    ///
    /// # Panics
    /// There is one already, there is no such topic, or a property is invalid.
    #[must_use]
    pub fn subscription_with(&self, name: &str, topic: &str, properties: &Value) -> String {
        let name = format!("projects/{PROJECT}/subscriptions/{name}");
        let mut body = properties.clone();
        body["topic"] = topic.into();
        self.call("PUT", &format!("/v1/{name}"), &body.to_string());
        name
    }

    /// Deletes a topic or a subscription, by its full name.
    ///
    /// # Panics
    /// It does not exist.
    pub fn delete(&self, name: &str) {
        self.call("DELETE", &format!("/v1/{name}"), "");
    }

    /// Publishes messages to a topic, which is given by its full name: objects with `data` (base64), `attributes` and
    /// `orderingKey`, as in the REST call.
    ///
    /// # Panics
    /// There is no such topic, or a message is invalid.
    pub fn publish(&self, topic: &str, messages: &[Value]) {
        for batch in messages.chunks(PUBLISHED_AT_ONCE) {
            self.call("POST", &format!("/v1/{topic}:publish"), &json!({ "messages": batch }).to_string());
        }
    }

    /// Messages of a subscription that are neither acked nor dead, and those of them that a client has.
    ///
    /// # Panics
    /// There is no such subscription.
    #[must_use]
    pub fn depth(&self, subscription: &str) -> (u64, u64) {
        let answer = self.ask(&format!("/depth?subscription={subscription}"));
        (answer[0].as_u64().unwrap_or_default(), answer[1].as_u64().unwrap_or_default())
    }

    /// The messages that were delivered from a subscription, in the order of their first delivery.
    #[must_use]
    pub fn delivered(&self, subscription: &str) -> Vec<Delivered> {
        let answer = self.ask(&format!("/messages?subscription={subscription}"));
        answer.as_array().into_iter().flatten().map(Delivered::parse).collect()
    }

    /// Streams that clients have open.
    #[must_use]
    pub fn streams(&self) -> u64 {
        self.ask("/streams").as_u64().unwrap_or_default()
    }

    /// Answers a call with a gRPC status code until [`succeed`](Self::succeed). `call` is a method, such as `StreamingPull` or
    /// `Acknowledge`, or a REST call, such as `GET subscriptions`.
    pub fn fail(&self, call: &str, code: u8) {
        let call = call.replace(' ', "%20");
        self.call("POST", &format!("/fail?call={call}&code={code}"), "");
    }

    /// Ends [`fail`](Self::fail).
    pub fn succeed(&self, call: &str) {
        self.fail(call, 0);
    }

    /// From now on `permission` is denied, in the answers of `testIamPermissions`.
    pub fn deny(&self, permission: &str) {
        self.call("POST", &format!("/deny?permission={permission}"), "");
    }

    /// Ends each new stream after `limit`, as the service does after half an hour.
    pub fn limit_streams(&self, limit: Duration) {
        self.call("POST", &format!("/stream-limit?limit={}ms", limit.as_millis()), "");
    }

    /// Ends all connections and takes no new ones: the service is down, and keeps what it has.
    pub fn stop(&self) {
        self.call("POST", "/down", "");
    }

    /// Listens again after [`stop`](Self::stop), on the same port.
    pub fn start_again(&self) {
        self.call("POST", "/up", "");
    }

    /// Pauses the whole process (SIGSTOP), or lets it continue. While it is paused no other method answers.
    pub fn pause(&self, paused: bool) {
        self.server.pause(paused);
    }

    fn call(&self, method: &str, path: &str, body: &str) -> String {
        match control::call(self.control, method, path, body) {
            Ok(answer) => answer,
            Err(error) => panic!("the Pub/Sub server refuses: {error}"),
        }
    }

    fn ask(&self, path: &str) -> Value {
        serde_json::from_str(&self.call("GET", path, "")).expect("the server's answer is JSON")
    }
}

impl Delivered {
    fn parse(answer: &Value) -> Self {
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        let count = |name: &str| answer[name].as_u64().unwrap_or_default();
        Self {
            id: text("id"),
            data: text("data"),
            ordering_key: text("orderingKey"),
            deliveries: count("deliveries"),
            acks: count("acks"),
            late: count("late"),
            nacks: count("nacks"),
            extensions: count("extensions"),
            dead: answer["dead"].as_bool().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_and_subscriptions_survive_a_restart_of_the_service() {
        let server = Pubsub::start();
        let topic = server.topic("orders");
        let subscription =
            server.subscription_with("orders", &topic, &json!({"enableMessageOrdering": true}));
        server.stop();
        assert!(TcpStream::connect(server.address()).is_err());
        server.start_again();
        assert!(TcpStream::connect(server.address()).is_ok());
        let answer = server.ask(&format!("/v1/{subscription}"));
        assert_eq!(answer["enableMessageOrdering"], true);
        assert_eq!(answer["ackDeadlineSeconds"], 10);
        assert_eq!(server.depth(&subscription), (0, 0));
        let address = server.address();
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }
}
