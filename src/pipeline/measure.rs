//! Passes measurements to the observer, if there is one: [`Measurer`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use crate::active_claim::ActiveClaim;
use crate::message::Message;
use crate::pipeline::run_clock::RunClock;
use crate::store::TraceContext;
use crate::telemetry::{Counter, Counters, KeySighting, LetterSighting, Measure, Observer};

/// The observer of a pipeline. Without one nothing is measured: reading the clock for each run would cost more than all the
/// rest.
#[derive(Clone, Default)]
pub(crate) struct Measurer(Option<Arc<Measuring>>);

struct Measuring {
    observer: Arc<dyn Observer>,
    since: Instant,
    /// Unique in this process, and not 0.
    pipeline: u64,
    /// A delivery had a span.
    traced: AtomicBool,
}

impl Measuring {
    fn new(observer: Arc<dyn Observer>) -> Self {
        static LATEST: AtomicU64 = AtomicU64::new(0);
        let pipeline = LATEST.fetch_add(1, Ordering::Relaxed) + 1;
        Self { observer, since: Instant::now(), pipeline, traced: AtomicBool::new(false) }
    }

    /// Nanoseconds: enough for five centuries.
    #[allow(clippy::cast_possible_truncation)]
    fn nanoseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_nanos() as u64
    }
}

/// A reading of the clock, at which the runs of a round may begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTime {
    pub(crate) now: Instant,
    /// If there is an observer, in nanoseconds since its pipeline began: to subtract for each run would cost too much.
    nanoseconds: u64,
    may_share: bool,
}

impl RoundTime {
    /// For a run behind which another one of its round begins: its end may need no reading of its own.
    pub(crate) fn shared(self) -> Self {
        Self { may_share: true, ..self }
    }

    pub(crate) fn may_share(&self) -> bool {
        self.may_share
    }
}

/// When a run began, in nanoseconds since its pipeline began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunBegan(u64);

impl Measurer {
    pub(crate) fn new(observer: Option<Arc<dyn Observer>>) -> Self {
        Self(observer.map(Measuring::new).map(Arc::new))
    }

    fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.0.as_ref().map(|measuring| &measuring.observer)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The time, if there is an observer.
    pub(crate) fn start(&self) -> Option<Instant> {
        self.0.as_ref().map(|_| Instant::now())
    }

    /// True if runs may share a reading of the clock: there is an observer, and no delivery has a span. The slowest of those with spans is
    /// shown as itself.
    pub(crate) fn may_share(&self) -> bool {
        self.0.as_ref().is_some_and(|measuring| !measuring.traced.load(Ordering::Relaxed))
    }

    /// Notes the time since [`start`](Self::start).
    pub(crate) fn stop(&self, measure: Measure, started: Option<Instant>) {
        if let (Some(observer), Some(started)) = (self.observer(), started) {
            observer.observe(measure, &[started.elapsed().as_secs_f64()]);
        }
    }

    /// The clock was read at `now`.
    pub(crate) fn round_time(&self, now: Instant) -> RoundTime {
        let nanoseconds = self.0.as_ref().map_or(0, |measuring| measuring.nanoseconds(now));
        RoundTime { now, nanoseconds, may_share: false }
    }

    /// When the run that begins here has started, if there is an observer; the clock was read at `time`, and not since.
    pub(crate) fn run_started(&self, time: &RoundTime) -> Option<RunBegan> {
        let measuring = self.0.as_ref()?;
        Some(RunBegan(RunClock::with(measuring.pipeline, |clock| clock.begin(time.nanoseconds))))
    }

    /// Notes in `claim` the time since [`run_started`](Self::run_started). `at_once`: that was in the same poll; `may_share`: its end may
    /// need no reading of its own.
    pub(crate) fn run_ended(
        &self,
        started: Option<RunBegan>,
        claim: &ActiveClaim,
        at_once: bool,
        may_share: bool,
    ) {
        let (Some(measuring), Some(RunBegan(began))) = (&self.0, started) else { return };
        claim.ran(RunClock::with(measuring.pipeline, |clock| {
            if at_once
                && may_share
                && let Some(nanoseconds) = clock.estimate()
            {
                return nanoseconds;
            }
            let now = measuring.nanoseconds(Instant::now());
            if at_once { clock.read(began, now) } else { clock.waited(began, now) }
        }));
    }

    pub(crate) fn observe(&self, measure: Measure, values: &[f64]) {
        if let Some(observer) = self.observer().filter(|_| !values.is_empty()) {
            observer.observe(measure, values);
        }
    }

    pub(crate) fn observe_counted(&self, measure: Measure, values: &CountedValues) {
        if let Some(observer) = self.observer() {
            values.pass_on(|values| observer.observe_counted(measure, values));
        }
    }

    /// Notes a value of the delivery that has this span.
    pub(crate) fn exemplar(&self, measure: Measure, value: f64, span: &Span) {
        if let Some(observer) = self.observer() {
            observer.exemplar(measure, value, span);
        }
    }

    /// Notes the slowest of the runs whose deliveries have spans.
    pub(crate) fn slowest<'s>(&self, measure: Measure, runs: impl Iterator<Item = (f64, &'s Span)>) {
        let slowest = runs.max_by(|(one, _), (other, _)| one.total_cmp(other));
        if let (Some(observer), Some((seconds, span))) = (self.observer(), slowest) {
            observer.exemplar(measure, seconds, span);
        }
    }

    /// Measures a call of the store or the broker.
    pub(crate) async fn timed<T>(&self, measure: Measure, call: impl Future<Output = T>) -> T {
        let started = self.start();
        let answer = call.await;
        self.stop(measure, started);
        answer
    }

    /// Notes the age of a duplicate, and that its span is that of a duplicate of the one in `first`.
    pub(crate) fn duplicate(&self, age: Duration, span: Option<&Span>, first: Option<TraceContext>) {
        let Some(observer) = self.observer() else { return };
        let age = age.as_secs_f64();
        observer.observe(Measure::DuplicateAge, &[age]);
        let Some(span) = span else { return };
        observer.exemplar(Measure::DuplicateAge, age, span);
        if let Some(first) = first {
            observer.duplicate(span, first);
        }
    }

    pub(crate) fn dead_lettered(&self, letter: &LetterSighting<'_>, attempts: u32) {
        if let Some(observer) = self.observer() {
            observer.dead_lettered(letter);
            observer.observe(Measure::Attempts, &[f64::from(attempts)]);
        }
    }

    pub(crate) fn sighted(&self, sighting: &KeySighting) {
        if let Some(observer) = self.observer() {
            observer.sighted(sighting);
        }
    }

    /// The span of a delivery that was received, if it has one.
    pub(crate) fn span(&self, message: &Message) -> Option<Span> {
        let measuring = self.0.as_ref()?;
        let span = measuring.observer.span(message);
        if span.is_none() {
            return None;
        }
        measuring.traced.store(true, Ordering::Relaxed);
        Some(span)
    }

    /// What is kept of the span of a delivery with the completion of its key.
    pub(crate) fn trace_context(&self, span: Option<&Span>) -> Option<TraceContext> {
        self.observer()?.trace_context(span?)
    }

    /// Starts to gather the ends of deliveries.
    pub(crate) fn ends<'o>(&'o self, counters: &'o Counters) -> Ends<'o> {
        let observer = self.observer().map(AsRef::as_ref);
        Ends { counters, counted: None, observer, ends: Vec::new() }
    }

    pub(crate) fn report(&self, counters: &Counters) {
        if let Some(observer) = self.observer() {
            observer.report(counters);
        }
    }

    /// Reports the counters once a second; ends at once without an observer.
    pub(crate) async fn report_each_second(self, counters: Arc<Counters>) {
        while self.is_on() {
            self.report(&counters);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

impl fmt::Debug for Measurer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Measurer").field(&self.is_on()).finish()
    }
}

/// Values of a batch, mostly one that comes many times in a row; without memory while all are the same.
#[derive(Debug, Default)]
pub(crate) struct CountedValues {
    /// The latest value, and how often it came in a row.
    latest: (f64, u64),
    before: Vec<(f64, u64)>,
}

impl CountedValues {
    #[inline]
    pub(crate) fn add(&mut self, value: f64) {
        if self.latest.0.to_bits() == value.to_bits() {
            self.latest.1 += 1;
        } else {
            self.next(value);
        }
    }

    fn next(&mut self, value: f64) {
        let latest = std::mem::replace(&mut self.latest, (value, 1));
        if latest.1 > 0 {
            self.before.push(latest);
        }
    }

    fn pass_on(&self, mut to: impl FnMut(&[(f64, u64)])) {
        if !self.before.is_empty() {
            to(&self.before);
        }
        if self.latest.1 > 0 {
            to(std::slice::from_ref(&self.latest));
        }
    }
}

/// The ends of a batch of deliveries, counted by origin and outcome; reported when it is dropped.
pub(crate) struct Ends<'o> {
    counters: &'o Counters,
    /// The latest outcome and how often in a row: it is counted when another one follows.
    counted: Option<(Counter, u64)>,
    observer: Option<&'o dyn Observer>,
    /// Few: a batch is mostly of one origin and ends in one way.
    ends: Vec<(Option<Arc<str>>, Counter, u64)>,
}

impl Ends<'_> {
    pub(crate) fn add(&mut self, message: &Message, outcome: Counter) {
        match &mut self.counted {
            Some((counter, count)) if *counter == outcome => *count += 1,
            _ => {
                self.count();
                self.counted = Some((outcome, 1));
            }
        }
        if self.observer.is_none() {
            return;
        }
        let origin = message.shared_origin();
        let same = |known: &Option<Arc<str>>| match (known, origin) {
            (None, None) => true,
            (Some(known), Some(origin)) => Arc::ptr_eq(known, origin) || known == origin,
            _ => false,
        };
        match self.ends.iter_mut().find(|(known, counter, _)| *counter == outcome && same(known)) {
            Some((.., count)) => *count += 1,
            None => self.ends.push((origin.cloned(), outcome, 1)),
        }
    }

    fn count(&mut self) {
        if let Some((counter, count)) = self.counted.take() {
            self.counters.add(counter, count);
        }
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.count();
        let Some(observer) = self.observer else { return };
        for (origin, outcome, count) in self.ends.drain(..) {
            observer.ended(origin.as_deref(), outcome, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_where_they_come_in_a_row() {
        let mut values = CountedValues::default();
        values.pass_on(|_| panic!("nothing was added"));
        [0.0, 0.0, 1.0, 1.0, 3.0, 1.0].into_iter().for_each(|value| values.add(value));
        let mut passed = Vec::new();
        values.pass_on(|values| passed.extend_from_slice(values));
        assert_eq!(passed, [(0.0, 2), (1.0, 2), (3.0, 1), (1.0, 1)]);
    }
}
