//! Members of a group under load that join, leave, are paused beyond their session and die, two to four of them at any time.

use std::collections::BTreeMap;
use std::time::Duration;

use onceward_test_support::chance::Chance;
use onceward_test_support::ledger::Produced;
use onceward_test_support::orders::order;
use onceward_test_support::process::{Running, until};
use serde_json::json;

use super::SESSION_MS;
use super::topic::Topic;
use crate::pair::{LONG, Waiting, stop};

pub(super) const PARTITIONS: i32 = 8;
const LANES: usize = 64;
/// One in ten is published a second time.
const COPIES: usize = 10;

/// Messages and disturbances: all of them on request, since they take minutes.
pub(super) fn size(usual: (usize, usize)) -> (usize, usize) {
    if std::env::var_os("SLOW").is_some() { (50_000, 20) } else { usual }
}

/// So many lines, and what was produced with them, in order: one in ten is what a producer sends again.
pub(super) fn orders(messages: usize, chance: &mut Chance) -> (Vec<String>, Vec<Produced>) {
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

/// Counts the occurrences of each item.
pub(super) fn counted<T: Ord>(of: impl IntoIterator<Item = T>) -> BTreeMap<T, u32> {
    let mut counts = BTreeMap::new();
    for one in of {
        *counts.entry(one).or_default() += 1;
    }
    counts
}

/// The members that run, each under the smallest number that was free when it joined.
pub(super) struct Members<'a> {
    start: &'a dyn Fn(usize) -> Running,
    /// Called when one has died or is paused: it is unknown then whether what is in flight had its effect.
    interrupted: Box<dyn FnMut() + 'a>,
    running: Vec<(usize, Running)>,
}

impl<'a> Members<'a> {
    /// Two of them.
    pub(super) fn two(start: &'a dyn Fn(usize) -> Running, interrupted: impl FnMut() + 'a) -> Self {
        let mut members = Self { start, interrupted: Box::new(interrupted), running: Vec::new() };
        members.join();
        members.join();
        members
    }

    /// Publishes `lines` in shares and disturbs the members as often as `disturbances` says, each time with most of a share
    /// before them. `done` grows with what they have done.
    pub(super) fn under_load(
        &mut self,
        topic: &Topic<'_>,
        lines: &[String],
        disturbances: usize,
        done: impl Fn() -> usize,
    ) {
        let mut had = 0;
        let share = lines.len().div_ceil(disturbances + 1);
        for (number, lines) in lines.chunks(share).enumerate() {
            topic.publish(lines);
            if number == disturbances {
                break;
            }
            until("effects", LONG, || done() > had + share / 5);
            self.disturb(number);
            had = done();
        }
    }

    /// All end in time on SIGTERM.
    pub(super) fn stop(self) {
        stop(self.running.into_iter().map(|(_, running)| running).collect());
    }

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

    fn join(&mut self) {
        let free = |number: &usize| self.running.iter().all(|(own, _)| own != number);
        let number = (0..).find(free).expect("a free number");
        self.running.push((number, (self.start)(number)));
    }

    fn leave(&mut self) {
        stop(vec![self.running.remove(0).1]);
    }

    fn die(&mut self) {
        assert_eq!(self.running.remove(0).1.kill().signal(), Some(9));
        (self.interrupted)();
    }

    /// Its handlers may go on meanwhile, unnoticed by the group: as if killed. Others take its partitions over.
    fn pause(&mut self) {
        self.running[0].1.stop();
        (self.interrupted)();
        std::thread::sleep(Duration::from_millis(SESSION_MS.unsigned_abs() * 2));
        self.running[0].1.go_on();
    }
}
