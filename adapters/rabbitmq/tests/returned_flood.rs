//! A broker that floods a connection with returned messages. It has a process of its own, because the memory of a process is
//! measured.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use onceward_rabbitmq::{RabbitmqConfig, RabbitmqConsumer};
use onceward_test_servers::lying::amqp::{self, Lie};
use onceward_test_servers::process::peak_memory;

const MOST_GROWTH: u64 = 100 << 20;

/// While the connection is opened, only the connect timeout bounds what the client library keeps (decision 14).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returned_messages_do_not_pile_up_once_the_connection_is_open() {
    let liar = amqp::start(Lie::Returns);
    let mut config = RabbitmqConfig::new(format!("amqp://guest:guest@{}/%2f", liar.address()), "q");
    config.endpoint.connect_timeout = Duration::from_secs(4);
    match RabbitmqConsumer::open(config).await {
        Ok(_consumer) => {
            let opened = peak_memory("self").unwrap();
            // The flood goes on meanwhile.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let peak = peak_memory("self").unwrap();
            assert!(peak < opened + MOST_GROWTH, "{opened} bytes, then {peak}");
        }
        Err(error) => assert!(error.is_retryable(), "{error:?}"),
    }
}
