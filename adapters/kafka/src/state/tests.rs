//! The state machine without a broker: assignment, delivery in turns, settlement, commits, doubts and revocations.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::adapter::{Settled, Settlement, Tag};
use onceward::{Message, Outgoing};

use crate::config::TopicConfig;
use crate::log_change::{LogChange, LogObservation};
use crate::log_id::LogId;
use crate::state::ConsumerState;
use crate::state::delivery::PolledRecord;
use crate::state::partition::TopicPartition;
use crate::state::start::PartitionStart;

const DRAIN: Duration = Duration::from_secs(5);

/// A state machine and its clock.
struct TestMember {
    state: ConsumerState,
    now: Instant,
}

impl TestMember {
    fn new() -> Self {
        let mut topics = TopicConfig::new(["orders"]);
        topics.buffer_messages = 100;
        let state = ConsumerState::new(Arc::new(topics), "cluster".into());
        Self { state, now: Instant::now() }
    }

    fn with_partitions(count: i32) -> Self {
        let mut member = Self::new();
        for number in 0..count {
            member.assign(number);
        }
        member
    }

    /// Assigns a partition; its epoch is the count of assignments so far.
    fn assign(&mut self, number: i32) {
        self.assign_at(PartitionStart::new("orders".into(), number));
    }

    fn assign_at(&mut self, start: PartitionStart) {
        self.state.assign(&[start], self.now);
    }

    fn read(&mut self, epoch: u64, offsets: Range<u64>) {
        self.read_waiting(epoch, offsets, Duration::ZERO);
    }

    fn read_waiting(&mut self, epoch: u64, offsets: Range<u64>, wait: Duration) {
        let record = |offset| PolledRecord { epoch, offset, message: Message::builder("").build(), wait };
        self.state.polled(offsets.map(record), self.now);
    }

    fn take(&mut self) -> Vec<Tag> {
        self.state.take(self.now).unwrap_or_default().into_iter().map(|delivery| delivery.tag).collect()
    }

    fn settle(&mut self, tags: &[Tag], settlement: Settlement) -> Vec<Settled> {
        let batch: Vec<_> = tags.iter().map(|tag| (*tag, settlement)).collect();
        self.state.settle(&batch, self.now)
    }

    /// The offsets that would be committed now.
    fn commits(&mut self) -> Vec<u64> {
        self.state.take_commits(self.now).into_iter().map(|commit| commit.offset).collect()
    }
}

fn partition(number: i32) -> TopicPartition {
    ("orders".into(), number)
}

#[test]
fn a_paused_partition_hands_out_nothing_and_leaves_the_room_to_the_others() {
    let mut member = TestMember::with_partitions(2);
    member.read(1, 0..100);
    assert!(!member.state.has_room());
    member.state.set_paused(1, true);
    member.state.set_paused(1, true);
    member.state.set_paused(99, true);
    assert!(member.state.has_room() && member.state.take_signals().poll);
    member.read(2, 0..10);
    assert!(member.take().iter().all(|tag| tag.epoch == 2));
    member.state.set_paused(1, false);
    member.state.set_paused(1, false);
    assert!(!member.state.has_room() && member.state.take_signals().receive);
    let tags = member.take();
    assert!(tags.len() == 100 && tags.iter().all(|tag| tag.epoch == 1));
    assert!(member.state.has_room());
    // A record that is given back while the partition is paused waits as well.
    member.state.set_paused(1, true);
    member.settle(&tags[5..6], Settlement::Abandon);
    assert_eq!(member.take(), []);
    member.state.set_paused(1, false);
    assert_eq!(member.take().len(), 1);
}

#[test]
fn partitions_take_turns_whichever_was_read_first() {
    let mut member = TestMember::with_partitions(2);
    member.read(1, 0..90);
    member.read(2, 0..5);
    let second = member.take().iter().position(|tag| tag.epoch == 2);
    assert!(second.is_some_and(|index| index <= 32), "{second:?}");
}

#[test]
fn the_committed_offset_stops_before_the_first_unsettled_record() {
    let mut member = TestMember::with_partitions(1);
    member.read(1, 0..4);
    let tags = member.take();
    assert_eq!(member.commits(), [0]);
    assert_eq!(member.settle(&tags[1..], Settlement::Ack), [Settled::Done; 3]);
    assert_eq!(member.commits(), [0; 0], "record 0 is in flight");
    assert_eq!(member.settle(&tags[1..2], Settlement::Ack), [Settled::TooLate], "settled twice");
    member.settle(&tags[..1], Settlement::Ack);
    assert_eq!(member.commits(), [4]);
}

#[test]
fn an_unconfirmed_or_failed_commit_is_sent_again_and_a_confirmed_one_is_not() {
    let mut member = TestMember::new();
    let log = LogId { topic_id: Some("id".into()), truncations: 0 };
    member.assign_at(PartitionStart { log: log.clone(), ..PartitionStart::new("orders".into(), 0) });
    member.read(1, 0..1);
    assert_eq!(member.commits(), [0]);
    member.now += Duration::from_millis(999);
    assert_eq!(member.commits(), [0; 0]);
    member.now += Duration::from_millis(1);
    assert_eq!(member.commits(), [0], "not confirmed within a second");
    member.state.commit_failed([("orders", 0)].into_iter());
    assert_eq!(member.commits(), [0], "it failed");
    member.state.commit_confirmed([("orders", 0, 0, "onceward other 0")].into_iter());
    member.now += Duration::from_secs(1);
    assert_eq!(member.commits(), [0], "the offset of another log was confirmed");
    member.state.commit_confirmed([("orders", 0, 0, log.to_string().as_str())].into_iter());
    member.now += Duration::from_secs(9);
    assert_eq!(member.commits(), [0; 0]);
}

#[test]
fn one_commit_is_in_flight_until_it_is_answered_or_overdue() {
    let mut member = TestMember::with_partitions(1);
    assert!(!member.state.is_committing(member.now));
    member.state.set_commit_sent(Some(member.now));
    assert!(member.state.is_committing(member.now + Duration::from_secs(59)));
    assert!(!member.state.is_committing(member.now + Duration::from_secs(60)));
    member.state.set_commit_sent(None);
    assert!(!member.state.is_committing(member.now));
}

#[test]
fn a_retry_waits_for_its_delay_and_keeps_its_place() {
    let mut member = TestMember::with_partitions(1);
    member.read(1, 0..3);
    let tags = member.take();
    member.state.take_signals();
    let after = Duration::from_secs(3);
    member.settle(&tags[..1], Settlement::Retry { after });
    assert!(member.state.take_signals().receive, "receive has to learn the due time");
    assert_eq!(member.state.take(member.now).unwrap_err(), Some(member.now + after));
    assert!(!member.state.nothing_waits());
    member.settle(&tags[1..2], Settlement::Retry { after: Duration::ZERO });
    member.now += after;
    let again = member.state.take(member.now).unwrap();
    assert_eq!(again.len(), 2);
    let offsets: Vec<_> =
        again.iter().map(|own| member.state.partitions[&1].in_flight[&own.tag.number].offset).collect();
    assert_eq!(offsets, [0, 1], "the smaller offset is handed out first");
}

#[test]
fn a_copy_to_a_retry_topic_is_made_once_and_counted_until_it_is_settled() {
    let mut member = TestMember::with_partitions(1);
    member.read(1, 0..1);
    let tags = member.take();
    let batch = [(tags[0], Settlement::Retry { after: DRAIN }), (tags[0], Settlement::Ack)];
    let to_copy = |_: &Message, _| Some(Outgoing::default());
    assert!(member.state.start_copies(&batch, |_, _| None).is_empty(), "no topic fits");
    let copies = member.state.start_copies(&batch, to_copy);
    assert!(matches!(&copies[..], [(0, Some(copy))] if copy.after == DRAIN && copy.tag == tags[0]));
    assert!(matches!(member.state.start_copies(&batch, to_copy)[..], [(0, None)]));
    assert_eq!((member.state.copies_in_flight(), member.state.nothing_waits()), (1, false));
    member.settle(&tags, Settlement::Ack);
    assert_eq!((member.state.copies_in_flight(), member.commits()), (0, vec![1]));
}

#[test]
fn records_read_before_a_partition_is_reassigned_are_left_to_the_new_assignment() {
    let mut member = TestMember::new();
    assert!(member.state.read_partition("orders", 0).is_none());
    member.assign(0);
    let before = member.state.generation;
    member.state.forget(&[partition(0)]);
    assert!(member.state.read_partition("orders", 0).is_none(), "it is gone");
    assert!(member.state.generation > before);
    member.assign(0);
    // They were read under the first epoch. The new assignment starts where the group has committed, and reads them again.
    member.read(1, 4..6);
    assert_eq!(member.state.read_partition("orders", 0).map(|own| own.epoch), Some(2));
    member.read(2, 4..5);
    assert_eq!(member.take().len(), 1);
}

#[test]
fn nothing_more_of_a_leaving_partition_is_delivered_and_its_pipeline_is_notified() {
    let mut member = TestMember::with_partitions(1);
    member.state.leave(vec![partition(0)], DRAIN, member.now);
    assert_eq!(member.state.take_signals().leaving, [1]);
    member.read(1, 4..5);
    assert_eq!(member.take(), []);
    assert_eq!(member.state.final_commits(&[partition(0)]), []);
    assert!(member.state.are_drained(&[partition(0)]) && member.state.is_leaving(1));
    member.state.forget(&[partition(0)]);
    assert!(member.state.take_signals().leaving.is_empty(), "it was notified before");
}

#[test]
fn a_leaving_partition_is_drained_when_its_records_are_settled_and_commits_them() {
    let mut member = TestMember::with_partitions(1);
    member.read(1, 0..2);
    let tags = member.take();
    member.state.leave(vec![partition(0)], DRAIN, member.now);
    assert!(!member.state.are_drained(&[partition(0)]));
    member.settle(&tags[..1], Settlement::Ack);
    member.settle(&tags[1..], Settlement::Retry { after: Duration::ZERO });
    assert!(member.state.are_drained(&[partition(0)]));
    assert_eq!(member.take(), [], "the next owner delivers it");
    assert_eq!(member.state.final_commits(&[partition(0)])[0].offset, 1);
    member.state.forget(&[partition(0)]);
    assert_eq!(member.settle(&tags, Settlement::Ack), [Settled::TooLate; 2]);
}

/// The client resets by itself when the requested offset is not in the log.
#[test]
fn a_record_before_the_requested_start_belongs_to_another_log() {
    let mut member = TestMember::new();
    member.assign_at(PartitionStart { from: Some(7), ..PartitionStart::new("orders".into(), 0) });
    member.state.take_signals();
    member.read(1, 4..5);
    assert_eq!(member.take(), []);
    assert!(member.state.has_doubts() && member.state.check_logs && member.state.take_signals().monitor);
}

#[test]
fn a_replaced_log_is_delivered_from_its_start_under_a_new_epoch() {
    let mut member = TestMember::new();
    let log = LogId { topic_id: Some("old".into()), truncations: 0 };
    member.assign_at(PartitionStart { log, ..PartitionStart::new("orders".into(), 0) });
    member.read(1, 0..3);
    let old = member.take();
    let observation = LogObservation { epoch: 1, topic_id: Some("new".into()), log_start: 0, log_end: 9 };
    member.state.observe(observation.clone());
    member.state.observe(observation.clone());
    assert_eq!(member.state.take_observations(), std::slice::from_ref(&observation));
    member.read(1, 3..4);
    assert_eq!(member.take(), [], "it is doubtful");
    assert_eq!(member.commits(), [0; 0]);
    let replaced = member.state.replacement(&observation).unwrap();
    assert_eq!((replaced.change, replaced.delivered_to), (LogChange::Recreated, Some(3)));
    member.state.restart(1, &PartitionStart { from: Some(0), ..replaced.start }, member.now);
    assert!(member.state.is_deleted("old", member.now) && !member.state.is_deleted("new", member.now));
    assert_eq!(member.settle(&old, Settlement::Ack), [Settled::TooLate; 3]);
    let (epoch, named, offset) = member.state.take_seeks().remove(0);
    assert_eq!((epoch, named, offset), (2, partition(0), rdkafka::Offset::Offset(0)));
    member.state.seek_done(epoch);
    member.read(2, 0..1);
    assert_eq!((member.take().len(), member.commits()), (1, vec![0]));
}

/// `--until-empty` would end while the member joins again.
#[test]
fn a_member_that_has_to_join_again_is_not_at_the_end() {
    let mut member = TestMember::new();
    let leaving = || vec![partition(0)];
    assert!(!member.state.is_settled(), "it has not joined");
    member.assign(0);
    assert!(member.state.is_settled());
    member.state.leave(leaving(), DRAIN, member.now);
    assert!(!member.state.is_settled(), "partitions are being revoked");
    member.state.revocation = None;
    member.state.forget(&leaving());
    assert!(!member.state.is_settled(), "they are gone, and it has to join again");
    member.state.assign(&[], member.now);
    assert!(member.state.is_settled(), "there is nothing for it");
    member.state.postpone(leaving(), None, member.now);
    assert!(!member.state.is_settled(), "the start of a partition is unknown");
    member.state.forget_all();
    member.state.assign(&[], member.now);
    assert!(member.state.is_settled());
    member.state.forget_all();
    assert!(!member.state.is_settled(), "the client is recreated");
}

#[test]
fn a_partition_with_a_copy_that_is_not_due_is_not_fetched() {
    let mut member = TestMember::with_partitions(2);
    member.read_waiting(1, 0..1, DRAIN);
    assert!(member.state.take_signals().receive);
    assert_eq!(member.state.waiting_partitions(member.now), [partition(0)].into());
    assert_eq!(member.state.progress(member.now).len(), 1, "it does not stall");
    assert_eq!(member.take(), []);
    member.now += DRAIN;
    assert!(member.state.waiting_partitions(member.now).is_empty());
    assert_eq!(member.take().len(), 1);
}

#[test]
fn a_pending_partition_is_started_once_its_start_is_known() {
    let mut member = TestMember::new();
    assert_eq!(member.state.postpone(vec![partition(0)], None, member.now), None);
    assert_eq!(member.state.waiting_partitions(member.now), [partition(0)].into());
    let start = PartitionStart { from: Some(5), ..PartitionStart::new("orders".into(), 0) };
    member.state.start_pending(&[start.clone(), PartitionStart::new("orders".into(), 1)], member.now);
    assert!(member.state.pending.is_empty() && member.state.read_partition("orders", 1).is_none());
    assert_eq!(member.state.take_seeks(), [(1, partition(0), start.offset())]);
    assert!(!member.state.nothing_waits(), "the client has to seek first");
}
