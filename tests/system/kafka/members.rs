//! Members that join, leave, are paused beyond their session and killed, under load.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onceward_test_support::chance::Chance;
use onceward_test_support::effects::Kind;
use onceward_test_support::ledger::Produced;
use onceward_test_support::orders::order;
use onceward_test_support::process::{Running, until};
use onceward_test_support::scene::Scene;
use serde_json::json;

use super::topic::Topic;
use super::{SESSION_MS, setup};
use crate::pair::{LONG, Waiting, pending, scene, stop};
use crate::stage::{ids_of, ledger_of};

const LANES: usize = 64;
/// One in ten is published a second time.
const COPIES: usize = 10;

/// Messages and disturbances: all of them on request, since they take minutes.
fn size() -> (usize, usize) {
    if std::env::var_os("SLOW").is_some() { (50_000, 20) } else { (10_000, 6) }
}

fn orders(messages: usize, chance: &mut Chance) -> (Vec<String>, Vec<Produced>) {
    let distinct = messages - messages / COPIES;
    let (mut lines, mut produced) = (Vec::with_capacity(messages), Vec::with_capacity(messages));
    for number in 0..distinct {
        let mut add = |number: usize| {
            let (id, lane) = (format!("{number:05}"), number % LANES);
            lines.push(order(&id, &json!({"lane": lane, "ms": 1})));
            produced.push(Produced { key: id, order_key: Some(lane.to_string()), confirmed: true });
        };
        add(number);
        if number % (COPIES - 1) == 0 {
            add(chance.number(0..number + 1));
        }
    }
    (lines, produced)
}

/// The members, and the keys that were in flight when one of them was disturbed.
struct Members<'a> {
    scene: &'a Scene,
    running: Vec<Running>,
    excused: BTreeSet<String>,
}

impl Members<'_> {
    fn join(&mut self) {
        self.running.push(self.scene.run());
    }

    fn leave(&mut self) {
        stop(vec![self.running.remove(0)]);
    }

    fn die(&mut self) {
        assert_eq!(self.running.remove(0).kill().signal(), Some(9));
        self.excused.extend(pending(self.scene));
    }

    /// Its handlers go on meanwhile, and nobody hears of it: as if killed.
    fn pause(&mut self) {
        self.running[0].stop();
        self.excused.extend(pending(self.scene));
        std::thread::sleep(Duration::from_millis(SESSION_MS.unsigned_abs() * 2));
        self.running[0].go_on();
    }

    /// Between two and four of them at any time.
    fn disturb(&mut self, number: usize) {
        match number % 6 {
            0 | 4 => self.join(),
            1 => self.pause(),
            2 => {
                self.die();
                self.join();
            }
            3 => self.leave(),
            _ => self.die(),
        }
        assert!((2..=4).contains(&self.running.len()), "{} members", self.running.len());
    }
}

#[test]
fn members_that_join_leave_pause_and_die_under_load_lose_nothing_and_keep_the_order_of_each_key() {
    let topic = Topic::create("members", 8);
    let (messages, disturbances) = size();
    let (lines, produced) = orders(messages, &mut Chance::new());
    let distinct = produced.iter().map(|own| &own.key).collect::<BTreeSet<_>>().len();
    let scene = scene(&setup(&topic));
    let done = AtomicBool::new(false);
    let excused = std::thread::scope(|threads| {
        let watching = threads.spawn(|| topic.watch(&done));
        // Under load from the first to the last disturbance: each has its share of the messages, published before it.
        let mut shares = lines.chunks(messages.div_ceil(disturbances + 1));
        let mut members =
            Members { scene: &scene, running: vec![scene.run(), scene.run()], excused: BTreeSet::new() };
        let mut had = 0;
        for number in 0..disturbances {
            topic.publish(shares.next().unwrap_or_default());
            until("effects", LONG, || {
                scene.count(Kind::Effect).len() > had + distinct / (disturbances + 1) / 4
            });
            members.disturb(number);
            had = scene.count(Kind::Effect).len();
        }
        topic.publish(shares.next().unwrap_or_default());
        until("all effects", LONG, || scene.count(Kind::Effect).len() == distinct);
        until("no lag", LONG, || topic.is_empty());
        let excused = ids_of(&scene, &members.excused);
        stop(members.running);
        done.store(true, Ordering::Relaxed);
        assert!(watching.join().expect("offsets that never go back") > 20, "it hardly looked");
        excused
    });
    let ledger = ledger_of(&scene, produced);
    assert!(excused.len() <= disturbances * 16, "{} keys were in flight", excused.len());
    ledger.verify(&excused);
    assert_eq!(ledger.out_of_order(), []);
}
