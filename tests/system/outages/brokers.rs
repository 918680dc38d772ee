//! Sources whose broker cannot be reached.

use onceward_test_servers::elasticmq::ElasticMq;
use onceward_test_servers::kafka::{Kafka, Listener, Security};
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::pubsub::Pubsub;
use onceward_test_servers::rabbitmq::{RabbitMq, url};
use onceward_test_servers::redis::Redis;
use onceward_test_support::setup::Setup;
use serde_json::json;

use super::{Outage, loaded, refusing, started};
use crate::kafka::topic::Topic;
use crate::pair::{Waiting, with_redis, without_source};
use crate::pubsub::subscription::Subscription;
use crate::rabbitmq::queue::Queue;
use crate::sqs::queue::Queue as SqsQueue;
use crate::{kafka, pubsub, rabbitmq, sqs};

fn survive(name: &str, setup: Setup, source: &impl Waiting, proxy: &Proxy) {
    let (scene, running, port) = started(name, with_redis(setup, Redis::shared()));
    let ((load, is_done), (begin, repair)) = (loaded(source), refusing(proxy));
    let (alert, component, shows) = ("OncewardSourceDown", "source", "error: ");
    Outage { alert, component, shows, scene: &scene, running, port, load, is_done, begin, repair }.survive();
}

pub(super) fn rabbitmq() {
    let proxy = Proxy::start(RabbitMq::shared().address()).expect("a proxy");
    let queue = Queue::declare("outages", &[]);
    let setup = rabbitmq::on(&queue, without_source()).set("source.rabbitmq.url", url(proxy.port()));
    survive("rabbitmq", setup, &queue, &proxy);
}

pub(super) fn kafka() {
    let listener = Listener::new(Security::Plain);
    let proxy = Proxy::start(listener.address()).expect("a proxy");
    let listener = listener.advertised(proxy.port());
    let broker = Kafka::start_with_listeners(&[listener], None);
    let topic = Topic::create_on(&broker, "outage", 2);
    let setup = kafka::setup(&topic).set("source.kafka.brokers", vec![listener.bootstrap()]);
    survive("kafka", setup, &topic, &proxy);
}

pub(super) fn sqs() {
    let proxy = Proxy::start(ElasticMq::shared().address()).expect("a proxy");
    let queue = SqsQueue::create("outage", &[]);
    let endpoint = format!("http://{}", proxy.address());
    // With the shortest visibility a busy machine would lose messages that are in flight.
    let setup = sqs::setup(&queue).set("source.sqs.endpoint", endpoint).set("source.sqs.visibility", "10s");
    survive("sqs", setup, &queue, &proxy);
}

pub(super) fn pubsub() {
    let proxy = Proxy::start(Pubsub::shared().address()).expect("a proxy");
    let subscription = Subscription::create("outage", &json!({}));
    let endpoint = Pubsub::shared().endpoint();
    let port = format!(":{}", Pubsub::shared().port());
    assert!(endpoint.contains(&port));
    let endpoint = endpoint.replace(&port, &format!(":{}", proxy.port()));
    let setup = pubsub::setup(&subscription).set("source.pubsub.endpoint", endpoint);
    survive("pubsub", setup, &subscription, &proxy);
}
