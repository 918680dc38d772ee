//! The memory of the program while 10,000 messages are received and not acknowledged.

use std::time::{Duration, Instant};

use onceward::{Outgoing, Publisher};
use onceward_rabbitmq::{RabbitmqEndpoint, RabbitmqPublisher};
use onceward_test_servers::rabbitmq::RabbitMq;
use onceward_test_servers::redis::Redis;

use crate::brokers::quorum;
use crate::stage::Stage;

const IN_FLIGHT: usize = 10_000;
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn measure(stage: &Stage) {
    let (broker, redis) = (RabbitMq::start(), Redis::start());
    let (mut resident, mut most) = (Vec::new(), Vec::new());
    for _ in 0..stage.figures.rounds(3) {
        let queue = quorum(stage, &broker);
        fill(stage, &broker, &queue);
        // A worker that does not answer: what it has not taken waits in the program.
        let file = stage.configuration(&format!(
            "[source.rabbitmq]\nurl = \"{}\"\nqueue = \"{queue}\"\nprefetch = {IN_FLIGHT}\n{}\
             [handler.worker]\ncommand = [\"sleep\", \"60\"]\n\
             [pipeline]\nordering = \"none\"\nconcurrency = {IN_FLIGHT}\nmax_in_flight = {IN_FLIGHT}\n",
            broker.url(),
            Stage::redis(&redis),
        ));
        let run = stage.run(&file);
        let began = Instant::now();
        while broker.depth(&queue) != (0, IN_FLIGHT as u64) {
            assert!(began.elapsed() < LIMIT, "{:?} after {LIMIT:?}", broker.depth(&queue));
            std::thread::sleep(Duration::from_millis(100));
        }
        // What was freed meanwhile is returned to the system.
        std::thread::sleep(Duration::from_secs(1));
        resident.push(run.mebibytes("VmRSS"));
        most.push(run.mebibytes("VmHWM"));
    }
    let part = "10,000 in flight, rabbitmq + redis";
    stage.figures.report_values(part, "MiB resident", &resident);
    stage.figures.report_values(part, "MiB resident at most", &most);
}

fn fill(stage: &Stage, broker: &RabbitMq, queue: &str) {
    stage.runtime.block_on(async {
        let publisher = RabbitmqPublisher::open(RabbitmqEndpoint::new(broker.url())).await.unwrap();
        let outgoing = |line: String| Outgoing {
            destination: queue.to_owned(),
            payload: line.into(),
            ..Outgoing::default()
        };
        let batch: Vec<_> = Stage::lines(0..IN_FLIGHT).map(outgoing).collect();
        publisher.publish(&batch).await.into_iter().for_each(Result::unwrap);
    });
}
