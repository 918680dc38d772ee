//! Which acknowledgements may go on the wire, and how few frames say them: [`Window`].

use std::collections::VecDeque;

use onceward::Settlement;

/// A frame for the broker. Frames must reach it in the order they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The message of `tag` is done with; with `multiple`, also those of all tags below that are still open.
    Ack { tag: u64, multiple: bool },
    /// Give it back to the queue.
    Requeue { tag: u64 },
    /// Dead-letter it by the queue's own rule, or drop it.
    Reject { tag: u64 },
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noted {
    /// It is on the wire, or will be with the next frames.
    Taken,
    /// This channel never delivered such a tag.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// Delivered and not settled, or not ours: no acknowledgement may pass over it.
    Open,
    /// To be acknowledged.
    Acked,
    /// Settled on the wire.
    Gone,
}

/// The deliveries of one channel, in the order of their tags.
///
/// A cumulative acknowledgement may be sent only over a prefix in which every tag is to be acknowledged or was settled on
/// the wire before: it would else take a message that is held for a retry along. What is to be acknowledged beyond such
/// a message waits a little, for the gap to close, and then goes singly.
#[derive(Debug)]
pub(crate) struct Window {
    /// The tag of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// How many slots are [`Slot::Acked`].
    waiting: usize,
    /// False on a channel that others may consume on: acknowledgements are single there.
    cumulative: bool,
}

impl Window {
    pub(crate) fn new(cumulative: bool) -> Self {
        Self { first: 1, slots: VecDeque::new(), waiting: 0, cumulative }
    }

    /// Notes a delivery. Tags grow; those that are left out belong to somebody else.
    pub(crate) fn delivered(&mut self, tag: u64) {
        let foreign = if self.cumulative { Slot::Open } else { Slot::Gone };
        if self.slots.is_empty() && !self.cumulative {
            self.first = self.first.max(tag);
        }
        while self.first + (self.slots.len() as u64) < tag {
            self.slots.push_back(foreign);
        }
        self.slots.push_back(Slot::Open);
    }

    /// Notes a settlement; a frame that must go at once is added to `frames`.
    pub(crate) fn settle(&mut self, tag: u64, settlement: Settlement, frames: &mut Vec<Frame>) -> Noted {
        if self.knows(tag) == Noted::Unknown {
            return Noted::Unknown;
        }
        let slot =
            tag.checked_sub(self.first).and_then(|index| self.slots.get_mut(usize::try_from(index).ok()?));
        // What was settled before is settled: a repeated settlement must not reach the broker, which would close the
        // channel for it.
        let Some(slot @ Slot::Open) = slot else { return Noted::Taken };
        *slot = Slot::Gone;
        match settlement {
            Settlement::Ack if self.cumulative => {
                *slot = Slot::Acked;
                self.waiting += 1;
            }
            Settlement::Ack => frames.push(Frame::Ack { tag, multiple: false }),
            Settlement::Reject => frames.push(Frame::Reject { tag }),
            _ => frames.push(Frame::Requeue { tag }),
        }
        if !self.cumulative {
            self.shorten();
        }
        Noted::Taken
    }

    /// Whether this channel delivered such a tag.
    pub(crate) fn knows(&self, tag: u64) -> Noted {
        let is_known = tag != 0 && tag < self.first + self.slots.len() as u64;
        if is_known { Noted::Taken } else { Noted::Unknown }
    }

    /// One frame for all acknowledgements before the first open delivery.
    pub(crate) fn prefix(&mut self) -> Option<Frame> {
        let (mut last, mut count) = (0, 0);
        while let Some(slot @ (Slot::Acked | Slot::Gone)) = self.slots.front() {
            if *slot == Slot::Acked {
                last = self.first;
                count += 1;
            }
            self.slots.pop_front();
            self.first += 1;
        }
        self.waiting -= count;
        (count > 0).then_some(Frame::Ack { tag: last, multiple: count > 1 })
    }

    /// Single frames for the acknowledgements beyond the first open delivery.
    pub(crate) fn stragglers(&mut self, frames: &mut Vec<Frame>) {
        if self.waiting == 0 {
            return;
        }
        for (tag, slot) in (self.first..).zip(&mut self.slots) {
            if *slot == Slot::Acked {
                *slot = Slot::Gone;
                frames.push(Frame::Ack { tag, multiple: false });
            }
        }
        self.waiting = 0;
        self.shorten();
    }

    /// How many acknowledgements wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// True if there is a delivery that was not settled.
    #[cfg(test)]
    pub(crate) fn has_open(&self) -> bool {
        self.slots.contains(&Slot::Open)
    }

    fn shorten(&mut self) {
        while let Some(Slot::Gone) = self.slots.front() {
            self.slots.pop_front();
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

    fn window(deliveries: u64) -> Window {
        let mut window = Window::new(true);
        (1..=deliveries).for_each(|tag| window.delivered(tag));
        window
    }

    fn ack(window: &mut Window, tags: impl IntoIterator<Item = u64>) {
        let mut frames = Vec::new();
        for tag in tags {
            assert_eq!(window.settle(tag, Settlement::Ack, &mut frames), Noted::Taken);
        }
        assert_eq!(frames, []);
    }

    #[test]
    fn one_frame_acknowledges_a_prefix_in_any_order() {
        let mut window = window(100);
        ack(&mut window, (1..=100).rev());
        assert_eq!(window.prefix(), Some(Frame::Ack { tag: 100, multiple: true }));
        assert_eq!((window.prefix(), window.waiting(), window.has_open()), (None, 0, false));
    }

    #[test]
    fn a_held_delivery_stops_the_prefix_and_the_rest_goes_singly() {
        let mut window = window(6);
        ack(&mut window, [1, 2, 4, 6]);
        assert_eq!(window.prefix(), Some(Frame::Ack { tag: 2, multiple: true }));
        assert_eq!((window.prefix(), window.waiting()), (None, 2));
        let mut frames = Vec::new();
        window.stragglers(&mut frames);
        let single = |tag| Frame::Ack { tag, multiple: false };
        assert_eq!(frames, [single(4), single(6)]);
        ack(&mut window, [3, 5]);
        assert_eq!(window.prefix(), Some(Frame::Ack { tag: 5, multiple: true }));
    }

    #[test]
    fn a_cumulative_ack_ends_at_a_tag_that_is_still_open_at_the_broker() {
        let mut window = window(3);
        let mut frames = Vec::new();
        ack(&mut window, [1]);
        window.settle(2, RETRY, &mut frames);
        window.settle(3, Settlement::Reject, &mut frames);
        assert_eq!(frames, [Frame::Requeue { tag: 2 }, Frame::Reject { tag: 3 }]);
        assert_eq!(window.prefix(), Some(Frame::Ack { tag: 1, multiple: false }));
    }

    #[test]
    fn a_settlement_is_taken_once_and_a_foreign_tag_never() {
        let mut window = window(2);
        let mut frames = Vec::new();
        assert_eq!(window.settle(1, RETRY, &mut frames), Noted::Taken);
        assert_eq!(window.settle(1, Settlement::Ack, &mut frames), Noted::Taken);
        assert_eq!(frames, [Frame::Requeue { tag: 1 }]);
        for tag in [0, 3, u64::MAX] {
            assert_eq!(window.settle(tag, Settlement::Ack, &mut frames), Noted::Unknown);
        }
        assert_eq!(window.prefix(), None);
    }

    #[test]
    fn on_a_shared_channel_every_ack_is_single_and_others_tags_are_left_alone() {
        let mut window = Window::new(false);
        [5, 6, 9].into_iter().for_each(|tag| window.delivered(tag));
        let mut frames = Vec::new();
        for tag in [9, 5, 6] {
            window.settle(tag, Settlement::Ack, &mut frames);
        }
        let tags: Vec<_> =
            frames.iter().map(|frame| matches!(frame, Frame::Ack { multiple: false, .. })).collect();
        assert_eq!(tags, [true; 3]);
        assert!(!window.has_open() && window.slots.is_empty());
    }

    /// The broker's view: what is unacknowledged. A frame for anything else closes the channel.
    struct Broker {
        open: BTreeSet<u64>,
        acked: BTreeSet<u64>,
    }

    impl Broker {
        fn take(&mut self, frame: Frame) {
            let (Frame::Ack { tag, .. } | Frame::Requeue { tag } | Frame::Reject { tag }) = frame;
            assert!(self.open.remove(&tag), "{frame:?} is for an unknown tag");
            if let Frame::Ack { multiple, .. } = frame {
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
    enum Step {
        Deliver,
        Settle(u64, u8),
        Prefix,
        Stragglers,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Deliver),
            6 => (0_u64..40, 0_u8..8).prop_map(|(tag, how)| Step::Settle(tag, how)),
            2 => Just(Step::Prefix),
            1 => Just(Step::Stragglers),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn the_broker_hears_of_each_settlement_once_and_of_nothing_else(steps in steps(), cumulative: bool) {
            let mut window = Window::new(cumulative);
            let mut broker = Broker { open: BTreeSet::new(), acked: BTreeSet::new() };
            let (mut delivered, mut wanted, mut settled) = (0, BTreeSet::new(), BTreeSet::new());
            for step in steps.into_iter().chain([Step::Prefix, Step::Stragglers]) {
                let mut frames = Vec::new();
                match step {
                    Step::Deliver => {
                        delivered += 1;
                        window.delivered(delivered);
                        broker.open.insert(delivered);
                    }
                    Step::Settle(tag, how) => {
                        let settlement = match how {
                            0 => RETRY,
                            1 => Settlement::Reject,
                            _ => Settlement::Ack,
                        };
                        let noted = window.settle(tag, settlement, &mut frames);
                        let known = (1..=delivered).contains(&tag);
                        prop_assert_eq!(noted == Noted::Taken, known);
                        if known && settled.insert(tag) && settlement == Settlement::Ack {
                            wanted.insert(tag);
                        }
                    }
                    Step::Prefix => frames.extend(window.prefix()),
                    Step::Stragglers => window.stragglers(&mut frames),
                }
                frames.into_iter().for_each(|frame| broker.take(frame));
                prop_assert!(broker.acked.is_subset(&wanted), "something was acknowledged that nobody acked");
            }
            prop_assert_eq!(&broker.acked, &wanted);
            prop_assert_eq!(broker.open.len() + settled.len(), delivered as usize);
            prop_assert_eq!(window.has_open(), !broker.open.is_empty());
        }
    }
}
