//! Decides which acknowledgement frames may be sent, and merges them into as few as possible: [`AckWindow`].

use std::collections::VecDeque;

use onceward::adapter::Settlement;

/// A settlement frame. Frames must be sent in the order in which they were created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SettleFrame {
    /// Acknowledges the delivery `tag`; with `multiple`, also all open deliveries with lower tags.
    Ack { tag: u64, multiple: bool },
    /// Requeues the message.
    Requeue { tag: u64 },
    /// Rejects the message: the queue dead-letters or drops it.
    Reject { tag: u64 },
}

/// Whether a channel delivered a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagLookup {
    /// The channel delivered it; its settlement is sent, or will be with the next frames.
    Known,
    /// The channel never delivered this tag.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TagState {
    /// Delivered and not settled, or delivered to another consumer: no cumulative acknowledgement may include it.
    Open,
    /// The acknowledgement is not sent yet.
    Acked,
    /// The settlement was sent.
    Settled,
}

/// The deliveries of one channel, in the order of their tags.
///
/// A cumulative acknowledgement is sent only for a prefix in which every tag is to be acknowledged or already settled;
/// otherwise it would also acknowledge a message that is held for a retry. Acknowledgements behind such a message wait
/// for the ack delay, in case the gap closes, and are then sent one by one.
#[derive(Debug)]
pub(crate) struct AckWindow {
    /// The tag of the first entry.
    first: u64,
    tags: VecDeque<TagState>,
    /// The number of entries in the state [`TagState::Acked`].
    waiting: usize,
    /// False on a channel with other consumers: each acknowledgement is a frame of its own there.
    cumulative: bool,
}

impl AckWindow {
    pub(crate) fn new(cumulative: bool) -> Self {
        Self { first: 1, tags: VecDeque::new(), waiting: 0, cumulative }
    }

    /// Adds a delivery. Tags grow; skipped tags belong to other consumers.
    pub(crate) fn delivered(&mut self, tag: u64) {
        let foreign = if self.cumulative { TagState::Open } else { TagState::Settled };
        if self.tags.is_empty() && !self.cumulative {
            self.first = self.first.max(tag);
        }
        while self.first + (self.tags.len() as u64) < tag {
            self.tags.push_back(foreign);
        }
        self.tags.push_back(TagState::Open);
    }

    /// Records a settlement; adds a frame to `frames` if one must be sent immediately.
    pub(crate) fn settle(
        &mut self,
        tag: u64,
        settlement: Settlement,
        frames: &mut Vec<SettleFrame>,
    ) -> TagLookup {
        if self.lookup(tag) == TagLookup::Unknown {
            return TagLookup::Unknown;
        }
        let state =
            tag.checked_sub(self.first).and_then(|index| self.tags.get_mut(usize::try_from(index).ok()?));
        // A repeated settlement must not reach the broker, which would close the channel.
        let Some(state @ TagState::Open) = state else { return TagLookup::Known };
        *state = TagState::Settled;
        match settlement {
            Settlement::Ack if self.cumulative => {
                *state = TagState::Acked;
                self.waiting += 1;
            }
            Settlement::Ack => frames.push(SettleFrame::Ack { tag, multiple: false }),
            Settlement::Reject => frames.push(SettleFrame::Reject { tag }),
            _ => frames.push(SettleFrame::Requeue { tag }),
        }
        if !self.cumulative {
            self.drop_settled_front();
        }
        TagLookup::Known
    }

    /// Whether this channel delivered `tag`.
    pub(crate) fn lookup(&self, tag: u64) -> TagLookup {
        let is_known = tag != 0 && tag < self.first + self.tags.len() as u64;
        if is_known { TagLookup::Known } else { TagLookup::Unknown }
    }

    /// Returns one frame for all acknowledgements before the first open delivery.
    pub(crate) fn take_prefix(&mut self) -> Option<SettleFrame> {
        let (mut last, mut count) = (0, 0);
        while let Some(state @ (TagState::Acked | TagState::Settled)) = self.tags.front() {
            if *state == TagState::Acked {
                last = self.first;
                count += 1;
            }
            self.tags.pop_front();
            self.first += 1;
        }
        self.waiting -= count;
        (count > 0).then_some(SettleFrame::Ack { tag: last, multiple: count > 1 })
    }

    /// Adds single frames for the acknowledgements behind the first open delivery.
    pub(crate) fn drain_acked(&mut self, frames: &mut Vec<SettleFrame>) {
        if self.waiting == 0 {
            return;
        }
        for (tag, state) in (self.first..).zip(&mut self.tags) {
            if *state == TagState::Acked {
                *state = TagState::Settled;
                frames.push(SettleFrame::Ack { tag, multiple: false });
            }
        }
        self.waiting = 0;
        self.drop_settled_front();
    }

    /// The number of acknowledgements that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// True if a delivery is not settled.
    #[cfg(test)]
    pub(crate) fn has_open(&self) -> bool {
        self.tags.contains(&TagState::Open)
    }

    fn drop_settled_front(&mut self) {
        while let Some(TagState::Settled) = self.tags.front() {
            self.tags.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const RETRY: Settlement = Settlement::Retry { after: Duration::ZERO };

    fn window(deliveries: u64) -> AckWindow {
        let mut window = AckWindow::new(true);
        (1..=deliveries).for_each(|tag| window.delivered(tag));
        window
    }

    fn ack(window: &mut AckWindow, tags: impl IntoIterator<Item = u64>) {
        let mut frames = Vec::new();
        for tag in tags {
            assert_eq!(window.settle(tag, Settlement::Ack, &mut frames), TagLookup::Known);
        }
        assert_eq!(frames, []);
    }

    #[test]
    fn one_frame_acknowledges_a_prefix_in_any_order() {
        let mut window = window(100);
        ack(&mut window, (1..=100).rev());
        assert_eq!(window.take_prefix(), Some(SettleFrame::Ack { tag: 100, multiple: true }));
        assert_eq!((window.take_prefix(), window.waiting(), window.has_open()), (None, 0, false));
    }

    #[test]
    fn a_held_delivery_stops_the_prefix_and_the_rest_goes_singly() {
        let mut window = window(6);
        ack(&mut window, [1, 2, 4, 6]);
        assert_eq!(window.take_prefix(), Some(SettleFrame::Ack { tag: 2, multiple: true }));
        assert_eq!((window.take_prefix(), window.waiting()), (None, 2));
        let mut frames = Vec::new();
        window.drain_acked(&mut frames);
        let single = |tag| SettleFrame::Ack { tag, multiple: false };
        assert_eq!(frames, [single(4), single(6)]);
        ack(&mut window, [3, 5]);
        assert_eq!(window.take_prefix(), Some(SettleFrame::Ack { tag: 5, multiple: true }));
    }

    #[test]
    fn a_cumulative_ack_ends_at_a_tag_that_is_still_open_at_the_broker() {
        let mut window = window(3);
        let mut frames = Vec::new();
        ack(&mut window, [1]);
        window.settle(2, RETRY, &mut frames);
        window.settle(3, Settlement::Reject, &mut frames);
        assert_eq!(frames, [SettleFrame::Requeue { tag: 2 }, SettleFrame::Reject { tag: 3 }]);
        assert_eq!(window.take_prefix(), Some(SettleFrame::Ack { tag: 1, multiple: false }));
    }

    #[test]
    fn a_settlement_is_taken_once_and_a_foreign_tag_never() {
        let mut window = window(2);
        let mut frames = Vec::new();
        assert_eq!(window.settle(1, RETRY, &mut frames), TagLookup::Known);
        assert_eq!(window.settle(1, Settlement::Ack, &mut frames), TagLookup::Known);
        assert_eq!(frames, [SettleFrame::Requeue { tag: 1 }]);
        for tag in [0, 3, u64::MAX] {
            assert_eq!(window.settle(tag, Settlement::Ack, &mut frames), TagLookup::Unknown);
        }
        assert_eq!(window.take_prefix(), None);
    }

    #[test]
    fn on_a_shared_channel_every_ack_is_single_and_others_tags_are_left_alone() {
        let mut window = AckWindow::new(false);
        [5, 6, 9].into_iter().for_each(|tag| window.delivered(tag));
        let mut frames = Vec::new();
        for tag in [9, 5, 6] {
            window.settle(tag, Settlement::Ack, &mut frames);
        }
        let tags: Vec<_> =
            frames.iter().map(|frame| matches!(frame, SettleFrame::Ack { multiple: false, .. })).collect();
        assert_eq!(tags, [true; 3]);
        assert!(!window.has_open() && window.tags.is_empty());
    }

    /// The broker's view: what is unacknowledged. A frame for anything else closes the channel.
    struct BrokerModel {
        open: BTreeSet<u64>,
        acked: BTreeSet<u64>,
    }

    impl BrokerModel {
        fn take(&mut self, frame: SettleFrame) {
            let (SettleFrame::Ack { tag, .. } | SettleFrame::Requeue { tag } | SettleFrame::Reject { tag }) =
                frame;
            assert!(self.open.remove(&tag), "{frame:?} is for an unknown tag");
            if let SettleFrame::Ack { multiple, .. } = frame {
                self.acked.insert(tag);
                if multiple {
                    let rest = self.open.split_off(&tag);
                    self.acked.append(&mut self.open);
                    self.open = rest;
                }
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum WindowStep {
        Deliver,
        Settle(u64, u8),
        Prefix,
        Stragglers,
    }

    fn steps() -> impl Strategy<Value = Vec<WindowStep>> {
        let step = prop_oneof![
            3 => Just(WindowStep::Deliver),
            6 => (0_u64..40, 0_u8..8).prop_map(|(tag, how)| WindowStep::Settle(tag, how)),
            2 => Just(WindowStep::Prefix),
            1 => Just(WindowStep::Stragglers),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn each_settlement_is_sent_exactly_once(steps in steps(), cumulative: bool) {
            let mut window = AckWindow::new(cumulative);
            let mut broker = BrokerModel { open: BTreeSet::new(), acked: BTreeSet::new() };
            let (mut delivered, mut wanted, mut settled) = (0, BTreeSet::new(), BTreeSet::new());
            for step in steps.into_iter().chain([WindowStep::Prefix, WindowStep::Stragglers]) {
                let mut frames = Vec::new();
                match step {
                    WindowStep::Deliver => {
                        delivered += 1;
                        window.delivered(delivered);
                        broker.open.insert(delivered);
                    }
                    WindowStep::Settle(tag, how) => {
                        let settlement = match how {
                            0 => RETRY,
                            1 => Settlement::Reject,
                            _ => Settlement::Ack,
                        };
                        let noted = window.settle(tag, settlement, &mut frames);
                        let known = (1..=delivered).contains(&tag);
                        prop_assert_eq!(noted == TagLookup::Known, known);
                        if known && settled.insert(tag) && settlement == Settlement::Ack {
                            wanted.insert(tag);
                        }
                    }
                    WindowStep::Prefix => frames.extend(window.take_prefix()),
                    WindowStep::Stragglers => window.drain_acked(&mut frames),
                }
                frames.into_iter().for_each(|frame| broker.take(frame));
                prop_assert!(broker.acked.is_subset(&wanted), "a delivery was acknowledged without a settlement");
            }
            prop_assert_eq!(&broker.acked, &wanted);
            prop_assert_eq!(broker.open.len() + settled.len(), delivered as usize);
            prop_assert_eq!(window.has_open(), !broker.open.is_empty());
        }
    }
}
