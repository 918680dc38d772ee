//! Each change of the breaker's state.

use super::*;

fn id(number: u64) -> RunId {
    RunId::Delivery(Tag { epoch: 0, number })
}

fn full(base: Duration, tries: u32, longest: Duration) -> Duration {
    base.saturating_mul(1 << tries.min(16)).min(longest)
}

struct Case {
    breaker: Breaker,
    now: Instant,
}

impl Case {
    fn new() -> Self {
        let config = BreakerConfig { enabled: true, failing_keys: 3 };
        Self { breaker: Breaker::new(config), now: Instant::now() }
    }

    fn run(&mut self, number: u64, end: RunEnd) -> Option<Change> {
        self.breaker.note(id(number), end, None, self.now, full)
    }

    fn probe(&mut self, number: u64, end: RunEnd) -> Option<Change> {
        self.now = self.now.max(self.breaker.probe_at().expect("a probe may start at some time"));
        assert!(self.breaker.may_probe(self.now));
        let probe = self.breaker.probe_started();
        assert!(!self.breaker.may_probe(self.now), "one probe at a time");
        self.breaker.note(id(number), end, probe, self.now, full)
    }

    fn pause(&self) -> Duration {
        self.breaker.probe_at().unwrap() - self.now
    }
}

fn failed() -> RunEnd {
    RunEnd::Failed("no".into())
}

fn away() -> RunEnd {
    RunEnd::Unavailable("connection refused".into(), None)
}

#[test]
fn two_messages_that_find_the_handler_unavailable_open_it_and_one_never_does() {
    let mut case = Case::new();
    for _ in 0..100 {
        assert_eq!(case.run(1, away()), None);
    }
    assert!(!case.breaker.is_open());
    let reported = case.breaker.reason().unwrap();
    assert_eq!((reported.failed_messages, &*reported.last_error), (None, "connection refused"));
    assert_eq!(case.run(2, away()), Some(Change::Opened));
}

#[test]
fn a_probe_waits_for_as_long_as_the_other_side_has_asked_for() {
    let mut case = Case::new();
    let minute = Duration::from_secs(60);
    let asked = || RunEnd::Unavailable("maintenance".into(), Some(minute));
    case.run(1, asked());
    case.run(2, asked());
    assert_eq!(case.pause(), minute);
    case.probe(1, away());
    assert!(case.pause() < minute, "the next answer did not ask for that");
    case.probe(1, asked());
    assert_eq!(case.pause(), minute);
}

#[test]
fn one_answer_cannot_keep_it_open_for_an_hour_or_for_ever() {
    for asked in [Duration::from_secs(3600), Duration::MAX] {
        let mut case = Case::new();
        let away = || RunEnd::Unavailable("slow down".into(), Some(asked));
        case.run(1, away());
        case.run(2, away());
        assert_eq!(case.pause(), Duration::from_secs(60));
        case.probe(1, away());
        assert_eq!(case.pause(), Duration::from_secs(60));
    }
}

#[test]
fn a_late_end_of_the_probe_of_an_earlier_opening_says_nothing_about_this_one() {
    for late in [failed(), away(), RunEnd::Nothing] {
        let mut case = Case::new();
        case.run(1, away());
        case.run(2, away());
        case.now = case.breaker.probe_at().unwrap();
        let old = case.breaker.probe_started();
        assert_eq!(case.run(3, RunEnd::Succeeded), Some(Change::Closed));
        case.run(1, away());
        assert_eq!(case.run(2, away()), Some(Change::Opened));
        case.now = case.breaker.probe_at().unwrap();
        let new = case.breaker.probe_started();
        assert_ne!(old, new);
        assert_eq!(case.breaker.note(id(4), late.clone(), old, case.now, full), None, "{late:?}");
        assert!(case.breaker.is_open() && !case.breaker.may_probe(case.now), "one probe at a time: {late:?}");
        assert_eq!(case.breaker.note(id(5), failed(), new, case.now, full), Some(Change::Closed));
    }
}

#[test]
fn different_messages_that_fail_in_a_row_open_it_and_one_message_never_does() {
    let mut case = Case::new();
    for _ in 0..100 {
        assert_eq!(case.run(1, failed()), None);
    }
    case.run(2, failed());
    assert_eq!(case.run(9, RunEnd::Succeeded), None);
    assert_eq!((case.run(3, failed()), case.run(4, failed())), (None, None), "the row began again");
    assert_eq!(case.run(5, failed()), Some(Change::Opened));
    assert_eq!(case.breaker.reason().unwrap().failed_messages, Some(3));
}

#[test]
fn a_message_that_fails_between_those_that_find_it_unavailable_shows_that_it_is_there() {
    let mut case = Case::new();
    case.run(1, away());
    case.run(2, failed());
    assert_eq!(case.run(3, away()), None);
    assert_eq!(case.run(4, away()), Some(Change::Opened));
}

#[test]
fn probes_come_one_at_a_time_after_pauses_that_grow_up_to_five_seconds() {
    let mut case = Case::new();
    case.run(1, away());
    case.run(2, away());
    let mut pauses = Vec::new();
    for number in 0..8 {
        pauses.push(case.pause().as_millis());
        assert_eq!(case.probe(number, away()), None);
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!(case.probe(1, RunEnd::Succeeded), Some(Change::Closed));
    assert!(!case.breaker.is_open() && case.breaker.reason().is_none());
}

#[test]
fn opened_by_unavailability_it_closes_at_a_verdict_about_the_probe() {
    let mut case = Case::new();
    case.run(1, away());
    case.run(2, away());
    assert_eq!(case.run(7, failed()), None, "that run started before it opened");
    assert_eq!(case.probe(3, failed()), Some(Change::Closed));
}

#[test]
fn opened_by_failures_it_stays_open_while_probes_fail_and_any_success_closes_it() {
    let mut case = Case::new();
    for number in 1..=3 {
        case.run(number, failed());
    }
    for number in 4..10 {
        assert_eq!(case.probe(number, failed()), None);
    }
    assert_eq!(case.run(11, RunEnd::Succeeded), Some(Change::Closed));
}

#[test]
fn a_probe_that_does_not_run_lets_another_message_try_at_once() {
    let mut case = Case::new();
    case.run(1, away());
    case.run(2, away());
    assert_eq!(case.probe(3, RunEnd::Nothing), None);
    assert!(case.breaker.may_probe(case.now));
}

#[test]
fn it_can_be_turned_off_wholly_or_for_failures() {
    let mut off = Breaker::new(BreakerConfig { enabled: false, failing_keys: 1 });
    for number in 0..10 {
        assert_eq!(off.note(id(number), away(), None, Instant::now(), full), None);
    }
    let mut no_failures = Breaker::new(BreakerConfig { enabled: true, failing_keys: 0 });
    for number in 0..10 {
        assert_eq!(no_failures.note(id(number), failed(), None, Instant::now(), full), None);
    }
}
