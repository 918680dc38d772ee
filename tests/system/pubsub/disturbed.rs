//! Connections that are cut, stalled or half-open, and a service that is restarted, paused, or ends its streams: no message
//! is lost, and no effect is doubled, since the leases of the store last.

use std::time::Duration;

use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_servers::pubsub::Pubsub;
use onceward_test_servers::redis::Redis;
use onceward_test_support::chance::Chance;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders::Orders;
use onceward_test_support::process::until;
use onceward_test_support::setup::Setup;
use serde_json::json;

use super::subscription::Subscription;
use super::{patient, setup};
use crate::pair::{LONG, Waiting, scene, stop, with_redis};
use crate::stage::each;

/// A disturbance that lasts.
const WHILE: Duration = Duration::from_secs(3);

/// One program works on orders, and is disturbed after a third and after two thirds of them.
fn once_each(subscription: &Subscription<'_>, setup: &Setup, mut disturb: impl FnMut()) {
    let orders = Orders::with_copies(900, 270, &json!({"ms": 5}), &mut Chance::new());
    subscription.publish(&orders.lines);
    let scene = scene(setup);
    let running = scene.run();
    for third in 1..3 {
        let least = orders.ids.len() * third / 3;
        until("effects", LONG, || scene.count(Kind::Effect).len() >= least);
        disturb();
    }
    until("all effects", LONG, || scene.count(Kind::Effect).len() == orders.ids.len());
    until("an empty subscription", LONG, || subscription.is_empty());
    stop(vec![running]);
    assert_eq!(scene.count(Kind::Effect), each(&orders.ids, 1));
}

/// Through a proxy. A connection that died silently is replaced after two seconds.
fn behind(proxy: &Proxy, subscription: &Subscription<'_>) -> Setup {
    let name = subscription.name().to_owned();
    patient(with_redis(setup(subscription), Redis::shared()))
        .set("scope", format!("pubsub-{name}"))
        .set("source.pubsub.endpoint", format!("http://{}", proxy.address()))
        .set("source.pubsub.reconnect_after", "2s")
        .set("source.pubsub.max_outstanding_messages", 50)
}

fn proxied(name: &str) -> (Subscription<'static>, Proxy) {
    let subscription = Subscription::create(name, &json!({}));
    (subscription, Proxy::start(Pubsub::shared().address()).expect("a proxy"))
}

#[test]
fn a_connection_that_is_cut_costs_nothing() {
    let (subscription, proxy) = proxied("cut");
    once_each(&subscription, &behind(&proxy, &subscription), || proxy.cut());
}

#[test]
fn a_stalled_connection_costs_nothing() {
    let (subscription, proxy) = proxied("stalled");
    let mut direction = Direction::ToServer;
    once_each(&subscription, &behind(&proxy, &subscription), || {
        proxy.set(direction, Flow::Stall);
        std::thread::sleep(WHILE);
        proxy.heal();
        direction = Direction::ToClient;
    });
}

#[test]
fn a_half_open_connection_is_replaced() {
    let (subscription, proxy) = proxied("half-open");
    once_each(&subscription, &behind(&proxy, &subscription), || proxy.half_open());
}

#[test]
fn a_service_that_is_restarted_and_paused_costs_nothing() {
    let server = Pubsub::start();
    let subscription = Subscription::create_on(&server, "restarted", &json!({}));
    let setup = patient(with_redis(setup(&subscription), Redis::shared()))
        .set("scope", "pubsub-restarted")
        .set("source.pubsub.max_outstanding_messages", 50);
    let mut is_first = true;
    once_each(&subscription, &setup, || {
        if std::mem::take(&mut is_first) {
            server.stop();
            std::thread::sleep(WHILE);
            server.start_again();
        } else {
            server.pause(true);
            std::thread::sleep(WHILE);
            server.pause(false);
        }
    });
}

#[test]
fn streams_that_the_service_ends_are_opened_again() {
    let server = Pubsub::start();
    server.limit_streams(Duration::from_millis(300));
    let subscription = Subscription::create_on(&server, "streams", &json!({}));
    let setup = patient(with_redis(setup(&subscription), Redis::shared())).set("scope", "pubsub-streams");
    once_each(&subscription, &setup, || ());
}
