//! Looks after topics and brokers beside the poll thread, by a client of its own: [`spawn`].
//!
//! It notices that a topic was recreated or a log truncated, and reports how far the member is behind and whether the cluster can
//! be reached.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use onceward::ErrorKind;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

use crate::client::native::{self, Edge};
use crate::poll::log_reset::Finding;
use crate::poll::rebalance::Users;
use crate::state::partition::Assigned;
use crate::state::{Shared, State};

/// How often the topics' ids are looked at. Of a topic that is recreated and longer than the old one at once, so long records
/// are taken for those of the old one.
const LOOK: Duration = Duration::from_secs(1);
/// How often doubtful partitions are looked at.
const SOON: Duration = Duration::from_millis(200);
/// How often the lag is measured.
const LAG: Duration = Duration::from_secs(5);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Starts the thread. It ends when the consumer stops.
pub(crate) fn spawn<C: ClientContext + 'static>(
    client: ClientConfig,
    context: Users<C>,
    shared: Arc<Shared>,
) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("onceward-kafka-look".into());
    thread.spawn(move || run(&client, &context, &shared)).map(drop)
}

fn run<C: ClientContext + 'static>(client: &ClientConfig, context: &Users<C>, shared: &Shared) {
    let mut asked: Option<BaseConsumer<Users<C>>> = None;
    let mut measured = None::<Instant>;
    let mut suspects = Suspects::new();
    let mut renewal = context.renewal();
    while wait(shared) {
        let client = match &asked {
            Some(client) => client,
            None => match client.create_with_context(context.clone()) {
                Ok(made) => asked.insert(made),
                Err(error) => {
                    tracing::error!(%error, "topics cannot be looked after: no client can be made");
                    return;
                }
            },
        };
        renewal.look(client.client());
        // Its errors are events, which the context has seen; tokens are asked for by the way.
        while client.poll(Duration::ZERO).is_some() {}
        let measures = measured.is_none_or(|at| at.elapsed() >= LAG);
        match look(client, shared, measures, &mut suspects) {
            Ok(missing) => {
                if measures {
                    measured = Some(Instant::now());
                }
                tell(shared, missing);
            }
            Err(error) => {
                let error =
                    context.trouble.explain("look at the topics".to_owned(), error, ErrorKind::Denied);
                if !shared.lock().stop && shared.health.set_down(error.to_string()) {
                    tracing::warn!(%error, "the source is down; the client reconnects by itself");
                }
            }
        }
    }
}

/// Waits until it is time to look. False if the consumer stops.
fn wait(shared: &Shared) -> bool {
    let mut state = shared.lock();
    let soon = state.assigned.values().any(|own| (own.doubtful || own.suspect) && !own.leaving);
    let limit = if soon { SOON } else { LOOK };
    let idle = |state: &mut State| !state.stop && !state.doubts;
    state = shared.asked.wait_timeout_while(state, limit, idle).unwrap_or_else(PoisonError::into_inner).0;
    state.doubts = false;
    !state.stop
}

/// Reports the health of the source after it has answered.
fn tell(shared: &Shared, missing: Vec<String>) {
    let trouble = {
        let state = shared.lock();
        state.trouble.clone().or_else(|| state.pending.trouble())
    };
    let down = match (trouble, missing.as_slice()) {
        (Some(trouble), _) => Some(trouble),
        (None, []) => None,
        (None, missing) => Some(format!(
            "topic {} does not exist (any more); create it again, or remove it from the configuration",
            missing.join(", ")
        )),
    };
    match down {
        Some(reason) => {
            if shared.health.set_down(reason.clone()) {
                tracing::error!(reason, "the source is down, or a part of it; what exists is consumed");
            }
        }
        None => {
            if shared.health.set_up() && shared.health.reconnects() > 0 {
                tracing::info!("the source is up again");
            }
        }
    }
}

/// A partition as it was before the cluster was asked.
struct Before {
    topic: Arc<str>,
    partition: i32,
    id: Option<String>,
    next: Option<u64>,
    doubtful: bool,
    suspect: bool,
}

/// The partitions whose log was told to end before what was delivered, by epoch, and since when.
type Suspects = HashMap<u64, Instant>;

/// How long a log must be told to be shorter than it was until that is believed: a broker that has lost the leadership, and does
/// not know it yet, ends before the others.
const BELIEVED: Duration = Duration::from_secs(1);

/// One look; the topics that do not exist.
fn look<C: ClientContext>(
    client: &BaseConsumer<Users<C>>,
    shared: &Shared,
    measures: bool,
    suspects: &mut Suspects,
) -> KafkaResult<Vec<String>> {
    let names = shared.topics.consumed();
    let (mut ids, mut missing) = (HashMap::new(), Vec::new());
    for (name, told) in names.iter().zip(native::describe_each(client.client(), &names, ANSWER)?) {
        match told {
            Ok(told) => drop(ids.insert((*name).to_owned(), told.id)),
            Err(error) if is_missing(&error) => missing.push((*name).to_owned()),
            Err(error) => return Err(error),
        }
    }
    let before: HashMap<u64, Before> = {
        let state = shared.lock();
        // Another broker than the last one may not know yet that a topic is gone.
        ids.retain(|_, id: &mut Option<String>| id.as_ref().is_none_or(|id| !state.is_gone(id)));
        let before = |own: &Assigned| Before {
            topic: Arc::clone(&own.topic),
            partition: own.number,
            id: own.stamp.id.clone(),
            next: own.next(),
            doubtful: own.doubtful,
            suspect: own.suspect,
        };
        // What is doubtful and waits for its seek is clear already.
        let clear = |epoch: &u64| state.seeks.iter().any(|(own, _)| own == epoch);
        let of =
            |(epoch, own): (&u64, &Assigned)| (!own.leaving && !clear(epoch)).then(|| (*epoch, before(own)));
        state.assigned.iter().filter_map(of).collect()
    };
    let is_other = |own: &Before| match (ids.get(&*own.topic), &own.id) {
        (Some(Some(now)), Some(before)) => now != before,
        _ => false,
    };
    suspects.retain(|epoch, _| before.contains_key(epoch));
    let is_other_log = |own: &Before| own.doubtful || is_other(own);
    let is_due = |own: &Before| measures || own.suspect || is_other_log(own);
    let asked = before.values().filter(|own| ids.contains_key(&*own.topic) && is_due(own));
    let asked: Vec<_> = asked.map(|own| (Arc::clone(&own.topic), own.partition)).collect();
    if asked.is_empty() {
        if measures {
            shared.health.set_lag(Some(0));
        }
        return Ok(missing);
    }
    let low = native::edges(client.client(), &asked, Edge::Low, ANSWER)?;
    let end = native::edges(client.client(), &asked, Edge::High, ANSWER)?;
    if end.is_empty() {
        return Err(KafkaError::MetadataFetch(Code::LeaderNotAvailable));
    }
    let mut lag = 0;
    for (epoch, own) in before {
        let key = (Arc::clone(&own.topic), own.partition);
        let (Some(low), Some(end)) = (low.get(&key).copied(), end.get(&key).copied()) else { continue };
        // A log that ends before what was delivered is not the log that it was, if that is so.
        let is_short = own.next.is_some_and(|next| next > end);
        let is_believed = is_believed(suspects, epoch, is_short, Instant::now());
        shared.suspect(epoch, is_short);
        if is_other_log(&own) || is_believed {
            let id = ids.get(&*own.topic).cloned().flatten();
            shared.found(Finding { epoch, id, low, end: end.max(low) });
        }
        lag += end.saturating_sub(own.next.unwrap_or(low).max(low));
    }
    if measures {
        shared.health.set_lag(Some(lag));
    }
    Ok(missing)
}

/// True if the log of a partition has been told to be too short for long enough, without a word to the contrary.
fn is_believed(suspects: &mut Suspects, epoch: u64, is_short: bool, now: Instant) -> bool {
    if !is_short {
        suspects.remove(&epoch);
        return false;
    }
    now.saturating_duration_since(*suspects.entry(epoch).or_insert(now)) >= BELIEVED
}

fn is_missing(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(Code::UnknownTopicOrPartition | Code::UnknownTopic))
}

impl Shared {
    /// Notes whether the log of a partition was told to end before what was delivered. If so, it is looked at again soon: what is
    /// told once may be wrong.
    pub(crate) fn suspect(&self, epoch: u64, suspect: bool) {
        let mut state = self.lock();
        let Some(own) = state.assigned.get_mut(&epoch).filter(|own| own.suspect != suspect) else { return };
        own.suspect = suspect;
        if suspect {
            state.doubts = true;
            drop(state);
            self.asked.notify_all();
        }
    }

    /// Hands a finding to the poll thread; nothing more of the partition is taken before.
    fn found(&self, finding: Finding) {
        let mut state = self.lock();
        let Some(own) = state.assigned.get_mut(&finding.epoch) else { return };
        own.doubtful = true;
        if state.findings.iter().all(|other| other.epoch != finding.epoch) {
            state.findings.push(finding);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_believed_to_be_shorter_when_it_is_told_for_a_while_and_never_the_contrary() {
        let (mut suspects, began) = (Suspects::new(), Instant::now());
        let mut at =
            |ms, is_short| is_believed(&mut suspects, 7, is_short, began + Duration::from_millis(ms));
        assert_eq!([at(0, true), at(900, true), at(950, false)], [false; 3]);
        assert_eq!([at(1_100, true), at(2_000, true), at(2_100, true)], [false, false, true]);
    }
}
