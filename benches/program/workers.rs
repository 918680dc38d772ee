//! Several programs on one store, each with its share of the messages.

use std::time::{Duration, Instant};

use onceward_test_servers::proxy::{Direction, Flow, Proxy};
use onceward_test_servers::redis::Redis;

use crate::stage::{Run, Stage};

const COUNTS: [usize; 4] = [1, 2, 4, 8];
/// Of each direction: a round trip of a millisecond.
const DELAY: Duration = Duration::from_micros(500);
/// What makes the round trip the limit, as in a program whose handlers are few.
const FEW: &str = "[pipeline]\nordering = \"none\"\nmax_in_flight = 16\nmax_batch = 16\nconcurrency = 16\n";

pub(crate) fn measure(stage: &Stage) {
    let redis = Redis::start();
    let far = Proxy::start(redis.address()).unwrap();
    far.set(Direction::ToServer, Flow::Delay(DELAY));
    far.set(Direction::ToClient, Flow::Delay(DELAY));
    let far_store = format!("[store.redis]\nurl = \"redis://{}/\"\n", far.address());
    // Enough for eight programs, whose start is measured as well.
    let messages = 5 * stage.figures.messages(60_000);
    on(
        stage,
        "file + redis",
        &format!("{}[pipeline]\nordering = \"none\"\n", Stage::redis(&redis)),
        messages,
    );
    on(stage, "file + redis behind 1 ms, 16 in flight", &format!("{far_store}{FEW}"), messages / 5);
}

fn on(stage: &Stage, part: &str, tables: &str, messages: usize) {
    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..stage.figures.rounds(3) {
        for (rates, count) in rates.iter_mut().zip(COUNTS) {
            let share = messages / count;
            let configurations: Vec<_> = (0..count)
                .map(|number| {
                    let file = stage.file(number * share..(number + 1) * share);
                    stage.configuration(&format!(
                        "[source.file]\npath = \"{file}\"\n[handler.stdout]\n{tables}"
                    ))
                })
                .collect();
            let began = Instant::now();
            let runs: Vec<_> = configurations.iter().map(|file| stage.run(file)).collect();
            runs.into_iter().for_each(Run::ended);
            rates.push((share * count) as f64 / began.elapsed().as_secs_f64());
        }
    }
    let names = COUNTS.map(|count| format!("{count} programs"));
    let variants: Vec<_> =
        names.iter().zip(&rates).skip(1).map(|(name, rates)| (name.as_str(), &rates[..])).collect();
    stage.figures.report(part, messages, ("1 program", &rates[0]), &variants);
}
