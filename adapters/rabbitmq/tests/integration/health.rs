//! Health of a source: its state, its queue length, and a password that is rotated.

use std::time::Duration;

use onceward::adapter::Consumer;
use onceward::telemetry::SourceState;
use onceward::{Outgoing, Publisher};
use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer, RabbitmqPublisher};
use onceward_test_servers::proxy::Proxy;
use onceward_test_servers::rabbitmq::url;

use crate::support::{Admin, Kind, shared, take, text, unique, until};

/// Takes `count` deliveries and returns their texts.
async fn taken(consumer: &mut RabbitmqConsumer, count: usize) -> Vec<String> {
    take(consumer, count).await.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_tells_whether_it_can_deliver_and_how_much_waits() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let queue = unique("queue");
    admin.declare(&queue, Kind::Classic).await;
    admin.publish(&queue, (0..10).map(|number| number.to_string())).await;
    let mut config = RabbitmqConfig::new(broker.url(), &queue);
    config.queue.prefetch = 3;
    let mut consumer = RabbitmqConsumer::open(config).await.unwrap();
    let health = consumer.health().unwrap();
    assert_eq!((health.state(), health.last_receive()), (SourceState::Up, None));
    taken(&mut consumer, 3).await;
    assert!(health.last_receive().is_some());
    until(Duration::from_secs(60), "7 wait", async || health.lag() == Some(7)).await;
    admin.delete(&queue).await;
    let receiving = tokio::spawn(async move { taken(&mut consumer, 1).await });
    let is_down = async || matches!(health.state(), SourceState::Down(why) if why.contains("no such queue"));
    until(Duration::from_secs(60), "down, with the reason", is_down).await;
    assert_eq!(health.lag(), None);
    admin.declare(&queue, Kind::Classic).await;
    until(Duration::from_secs(60), "up", async || health.state() == SourceState::Up).await;
    admin.publish(&queue, ["new".to_owned()]).await;
    assert_eq!((receiving.await.unwrap(), health.reconnects()), (vec!["new".to_owned()], 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_is_read_for_each_new_connection() {
    let broker = shared().await;
    let admin = Admin::connect(broker).await;
    let (queue, user) = (unique("queue"), unique("user"));
    admin.declare(&queue, Kind::Classic).await;
    broker.ctl(&["add_user", &user, "one"]);
    broker.ctl(&["set_permissions", "-p", "/", &user, "^$", "^amq\\.default$", ".*"]);
    let folder = std::env::temp_dir().join(format!("{user}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("password");
    std::fs::write(&file, "one\n").unwrap();
    let proxy = Proxy::start(broker.address()).unwrap();
    let url = url(proxy.port()).replace("guest:guest", &format!("{user}:stale"));
    let mut config = RabbitmqConfig::new(url, &queue);
    config.endpoint.password_file = Some(file.clone());
    let publisher = RabbitmqPublisher::open(config.endpoint.clone()).await.unwrap();
    let mut consumer = RabbitmqConsumer::open(config).await.unwrap();
    broker.ctl(&["change_password", &user, "two"]);
    std::fs::write(&file, "two").unwrap();
    proxy.cut();
    let message = Outgoing { destination: queue.clone(), payload: "1".into(), ..Outgoing::default() };
    until(Duration::from_secs(60), "published", async || {
        publisher.publish(std::slice::from_ref(&message)).await[0].is_ok()
    })
    .await;
    assert_eq!(taken(&mut consumer, 1).await, ["1"]);
    std::fs::remove_dir_all(folder).unwrap();
}
