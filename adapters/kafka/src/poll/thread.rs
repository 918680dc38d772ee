//! The loop of the poll thread: [`PollThread`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::util::Timeout;

use crate::auth::failures::AuthFailures;
use crate::client::context::SharedContext;
use crate::error;
use crate::handle::Handle;
use crate::poll::commit::send_commit;
use crate::poll::read_ahead::ReadAhead;
use crate::poll::rebalance::RebalanceContext;
use crate::poll::stalls::{StallCheck, StallDetector};
use crate::poll::{log_reset, pending, retention, revocation};
use crate::start_offsets::StoredPositions;
use crate::state::partition::TopicPartition;

/// The timeout of one poll; bounds the delay of a stop, a commit or an answer.
const POLL_TIMEOUT: Duration = Duration::from_millis(20);
/// The timeout of a request to describe the group.
const GROUP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a full buffer is waited for before partitions are paused, which discards prefetched records.
const FULL_BUFFER_WAIT: Duration = Duration::from_millis(200);

/// Why the loop of a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoopEnd {
    /// The consumer stops, or the client has a fatal error.
    Stopped,
    /// The client has stalled and must be recreated.
    Stalled,
}

/// Polls the client of a consumer, and recreates a client that has stalled.
pub(crate) struct PollThread<C: ClientContext + 'static> {
    client: ClientConfig,
    context: SharedContext<C>,
    from_end: bool,
    stored: Option<Arc<dyn StoredPositions>>,
    handle: Arc<Handle>,
    stalls: StallDetector<C>,
}

type MemberClient<C> = BaseConsumer<RebalanceContext<C>>;

impl<C: ClientContext + 'static> PollThread<C> {
    /// Prepares the thread of a member with the configuration `client`.
    pub(crate) fn new(
        client: ClientConfig,
        context: SharedContext<C>,
        from_end: bool,
        stored: Option<Arc<dyn StoredPositions>>,
        handle: Arc<Handle>,
    ) -> Self {
        let stalls = StallDetector::new(&client, context.clone());
        Self { client, context, from_end, stored, handle, stalls }
    }

    /// Creates the client, which joins the group, and starts the thread. It ends when the handle is stopped, or after a fatal
    /// error, which is reported.
    ///
    /// # Errors
    /// The client rejects its configuration, or no thread is available.
    pub(crate) fn spawn(
        self,
        no_thread: impl FnOnce(std::io::Error) -> onceward::Error,
    ) -> Result<(), onceward::Error> {
        let consumer = self.join_group()?;
        let thread = std::thread::Builder::new().name("onceward-kafka".into());
        thread.spawn(move || self.run(consumer)).map(drop).map_err(no_thread)
    }

    fn join_group(&self) -> Result<MemberClient<C>, onceward::Error> {
        let topics = &self.handle.topics;
        let operation = || format!("consume topic {}", topics.names.join(", "));
        let (user, handle) = (self.context.clone(), Arc::clone(&self.handle));
        let context = RebalanceContext::new(user, handle, &self.client, self.from_end, self.stored.clone());
        let consumer: MemberClient<C> =
            self.client.create_with_context(context).map_err(|error| error::classify(operation(), error))?;
        consumer.subscribe(&topics.consumed()).map_err(|error| error::classify(operation(), error))?;
        Ok(consumer)
    }

    fn run(mut self, mut consumer: MemberClient<C>) {
        let handle = Arc::clone(&self.handle);
        while PollLoop::new(&consumer, &handle).run(&mut self.stalls) == LoopEnd::Stalled {
            revocation::finish(&consumer, &handle);
            handle.set_closing(true);
            // Leaves the group.
            drop(consumer);
            handle.with(|state| state.forget_all());
            handle.set_closing(false);
            consumer = match self.join_group() {
                Ok(consumer) => consumer,
                Err(error) => {
                    handle.report(error);
                    return handle.end();
                }
            };
        }
        handle.stop();
        handle.set_closing(true);
        revocation::finish(&consumer, &handle);
        // Revokes the partitions: they are committed there, without waiting.
        drop(consumer);
        handle.end();
    }
}

/// The loop of one client.
struct PollLoop<'a, C: ClientContext + 'static> {
    consumer: &'a MemberClient<C>,
    handle: &'a Handle,
    /// True while all partitions are paused because the buffer is full.
    all_paused: bool,
    /// Partitions that are paused one by one, whether or not the buffer is full.
    held_back: HashSet<TopicPartition>,
    committed_at: Instant,
    auth_failures: AuthFailures,
}

impl<'a, C: ClientContext> PollLoop<'a, C> {
    fn new(consumer: &'a MemberClient<C>, handle: &'a Handle) -> Self {
        Self {
            consumer,
            handle,
            all_paused: false,
            held_back: HashSet::new(),
            committed_at: Instant::now(),
            auth_failures: AuthFailures::default(),
        }
    }

    fn run(mut self, stalls: &mut StallDetector<C>) -> LoopEnd {
        let (consumer, handle) = (self.consumer, self.handle);
        let mut read_ahead = ReadAhead::default();
        let mut password_refresh = consumer.context().password_refresh();
        while !handle.is_stopping() {
            password_refresh.run_if_due(consumer.client());
            self.control_flow();
            revocation::advance(consumer, handle);
            if !pending::advance(consumer, handle) || !log_reset::apply(consumer, handle) {
                return LoopEnd::Stopped;
            }
            #[cfg(test)]
            if handle.take_sabotage() {
                self.set_all_paused(true);
            }
            if self.poll(&mut read_ahead) == Some(LoopEnd::Stopped) {
                return LoopEnd::Stopped;
            }
            retention::count_lost(consumer, handle);
            self.commit_if_due();
            answer_idle_questions(consumer, handle, stalls);
            if !self.all_paused
                && handle.with(|state| state.nothing_waits())
                && stalls.check(consumer, handle) == StallCheck::Stalled
            {
                tracing::error!("client stalled; recreating it");
                return LoopEnd::Stalled;
            }
        }
        LoopEnd::Stopped
    }

    /// Reads records until there are no more, the buffer is full, or something else is due.
    fn poll(&mut self, read_ahead: &mut ReadAhead) -> Option<LoopEnd> {
        let (consumer, handle) = (self.consumer, self.handle);
        let mut end = None;
        // Waits once, then reads what is available.
        let mut timeout = Timeout::from(POLL_TIMEOUT);
        while let Some(polled) = consumer.poll(timeout) {
            match polled {
                Ok(record) => {
                    let lookup =
                        |topic: &str, number| handle.with(|state| state.read_partition(topic, number));
                    if !read_ahead.read(&record, &handle.topics, handle.generation(), lookup) {
                        // The rest of its partition has to be held back first.
                        break;
                    }
                }
                Err(error) => {
                    end = self.is_fatal(error).then_some(LoopEnd::Stopped);
                    break;
                }
            }
            timeout = Timeout::from(Duration::ZERO);
            if read_ahead.is_full(&handle.topics) {
                pass_on(read_ahead, handle);
                let is_due = self.committed_at.elapsed() >= handle.topics.commit_interval;
                let must_stop = handle.with(|state| state.flow_changed || !state.has_room());
                if is_due || must_stop || handle.is_stopping() {
                    break;
                }
            }
        }
        pass_on(read_ahead, handle);
        end
    }

    /// Pauses partitions while there is no room, and resumes them.
    fn control_flow(&mut self) {
        let handle = self.handle;
        if handle.with(|state| std::mem::take(&mut state.reassigned)) {
            // The client remembers the pause of a revoked partition, and would apply it when the partition is assigned again.
            // Whether to pause is decided again below.
            self.all_paused = !self.set_all_paused(false);
        }
        if self.all_paused {
            let is_half_empty = handle.with(|state| state.is_half_empty());
            self.all_paused = !(is_half_empty && self.set_all_paused(false));
        } else if !handle.wait_for_room(FULL_BUFFER_WAIT) {
            self.all_paused = self.set_all_paused(true);
        }
        self.hold_back();
    }

    /// Pauses the partitions that must not be fetched for a while, and resumes the others.
    fn hold_back(&mut self) {
        let waiting = self.handle.with(|state| {
            state.flow_changed = false;
            state.waiting_partitions(Instant::now())
        });
        if waiting == self.held_back {
            return;
        }
        let pause = to_list(waiting.difference(&self.held_back));
        let resume = to_list(self.held_back.difference(&waiting));
        let mut changed = Ok(());
        if pause.count() > 0 {
            changed = self.consumer.pause(&pause);
        }
        // While all are paused, these are resumed with the others.
        if resume.count() > 0 && !self.all_paused {
            changed = changed.and(self.consumer.resume(&resume));
        }
        match changed {
            Ok(()) => self.held_back = waiting,
            Err(error) => tracing::debug!(%error, "pausing single partitions failed; retrying"),
        }
    }

    /// Pauses or resumes all partitions except those that are held back. Returns false if the client refuses.
    fn set_all_paused(&self, pause: bool) -> bool {
        let changed = self.consumer.assignment().and_then(|assignment| {
            let elements = assignment.elements();
            let assigned: Vec<TopicPartition> =
                elements.iter().map(|own| (Arc::from(own.topic()), own.partition())).collect();
            let list = to_list(assigned.iter().filter(|own| !self.held_back.contains(*own)));
            match pause {
                true => self.consumer.pause(&list),
                false => self.consumer.resume(&list),
            }
        });
        if let Err(error) = &changed {
            tracing::warn!(%error, pause, "pausing or resuming all partitions failed; retrying");
        }
        changed.is_ok()
    }

    fn commit_if_due(&mut self) {
        let handle = self.handle;
        let is_due = self.committed_at.elapsed() >= handle.topics.commit_interval;
        if is_due && !handle.with(|state| state.is_committing(Instant::now())) {
            let offsets = handle.with(|state| state.take_commits(Instant::now()));
            send_commit(self.consumer, handle, &offsets, CommitMode::Async);
            self.committed_at = Instant::now();
        }
    }

    /// Reports an error that needs a person, and logs one that the client recovers from. Returns true for a fatal error.
    fn is_fatal(&mut self, error: KafkaError) -> bool {
        let (consumer, handle) = (self.consumer, self.handle);
        let operation = || format!("receive from topic {}", handle.topics.names.join(", "));
        let is_fatal = matches!(error, KafkaError::MessageConsumptionFatal(_))
            || consumer.client().fatal_error().is_some();
        match error.rdkafka_error_code() {
            _ if is_fatal => {
                let what = "fatal client error; see the cause";
                let kind = onceward::ErrorKind::Internal;
                handle.report(onceward::Error::new(kind, operation(), what).with_source(error));
            }
            _ if error::is_authentication(&error) && !self.auth_failures.record(Instant::now()) => {
                tracing::warn!(%error, "authentication failed; retrying");
            }
            // The monitor reports it, and the other topics are consumed.
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
                tracing::debug!(%error, "topic does not exist");
                handle.with(|state| state.request_log_check());
            }
            Some(Code::InconsistentGroupProtocol) => self.report_other_strategy(),
            Some(
                Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::OffsetOutOfRange
                | Code::AutoOffsetReset,
            ) => handle.report(error::classify(operation(), error)),
            _ => tracing::warn!(%error, "client error; the client continues"),
        }
        is_fatal
    }

    /// Reports that the group's members use another assignment strategy; this member cannot join until they leave.
    fn report_other_strategy(&self) {
        let context = self.consumer.context();
        let group = context.group.as_str();
        let used = self.consumer.fetch_group_list(Some(group), GROUP_TIMEOUT).ok().and_then(|groups| {
            let own = groups.groups().iter().find(|own| own.name() == group)?;
            (!own.protocol().is_empty()).then(|| own.protocol().to_owned())
        });
        let used = used.map_or("another one".to_owned(), |used| format!("{used:?}"));
        let reason = format!(
            "joining group {group} failed: its members use partition.assignment.strategy {used}, and this one uses {:?}; set the \
             same strategy in the properties, or stop the other members first",
            context.strategy
        );
        if self.handle.health.set_down(reason.clone()) {
            tracing::error!(
                cause = reason,
                "joining the group failed: its members use another assignment strategy"
            );
        }
        self.handle.with(|state| state.join_failure = Some(reason));
    }
}

fn pass_on(read_ahead: &mut ReadAhead, handle: &Handle) {
    if read_ahead.is_empty() {
        return;
    }
    handle.health.received();
    handle.with(|state| state.polled(read_ahead.drain(), Instant::now()));
}

fn to_list<'a>(partitions: impl Iterator<Item = &'a TopicPartition>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, number) in partitions {
        list.add_partition(topic, *number);
    }
    list
}

/// Answers whether there is nothing to deliver: every partition was read to its end.
fn answer_idle_questions<C: ClientContext>(
    consumer: &MemberClient<C>,
    handle: &Handle,
    stalls: &mut StallDetector<C>,
) {
    let questions = handle.take_idle_questions();
    if questions.is_empty() {
        return;
    }
    let is_idle = match handle.with(|state| state.is_settled()) {
        true => stalls.is_at_end(consumer, handle),
        false => Some(false),
    };
    for question in questions {
        // The receiver may have been dropped.
        let _ = question.send(is_idle);
    }
}
