//! The offsets of one partition that have been read and settled: [`LetterPartition`].

use std::collections::BTreeSet;

/// From the offset before which every record is settled to the end that the partition had when it was opened.
#[derive(Debug)]
pub(super) struct LetterPartition {
    /// The next offset to be delivered.
    next: u64,
    end: u64,
    /// Delivered and not settled.
    open: BTreeSet<u64>,
    saved: u64,
}

impl LetterPartition {
    pub(super) fn new(start: u64, end: u64) -> Self {
        Self { next: start, end, open: BTreeSet::new(), saved: start }
    }

    /// The offset to read from.
    pub(super) fn start(&self) -> u64 {
        self.next
    }

    /// Notes the delivery of a record; false if it is not to be delivered: it is beyond the end, or was delivered before.
    pub(super) fn deliver(&mut self, offset: u64) -> bool {
        if offset < self.next || offset >= self.end {
            self.next = self.next.max(offset.min(self.end));
            return false;
        }
        self.next = offset + 1;
        self.open.insert(offset);
        true
    }

    /// Notes that there is no record before the end any more: the last offsets may be those of markers.
    pub(super) fn end(&mut self) {
        self.next = self.end;
    }

    pub(super) fn is_read(&self) -> bool {
        self.next >= self.end
    }

    pub(super) fn settle(&mut self, offset: u64) {
        self.open.remove(&offset);
    }

    /// The offset before which everything is settled, if it is not saved.
    pub(super) fn unsaved(&self) -> Option<u64> {
        let settled = self.open.first().copied().unwrap_or(self.next);
        (settled > self.saved).then_some(settled)
    }

    pub(super) fn saved(&mut self, offset: u64) {
        self.saved = self.saved.max(offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_never_passes_a_record_that_is_not_settled() {
        let mut own = LetterPartition::new(3, 8);
        for offset in [3, 4, 6] {
            assert!(own.deliver(offset));
        }
        assert!(!own.deliver(4), "it was delivered before");
        own.settle(4);
        assert_eq!(own.unsaved(), None);
        own.settle(3);
        assert_eq!(own.unsaved(), Some(6), "offset 5 holds no record");
        own.saved(6);
        own.settle(6);
        assert_eq!((own.unsaved(), own.is_read()), (Some(7), false));
    }

    #[test]
    fn a_record_beyond_the_end_is_left_to_the_next_reader() {
        let mut own = LetterPartition::new(0, 2);
        assert!(own.deliver(0) && !own.is_read());
        assert!(!own.deliver(2) && own.is_read());
        own.settle(0);
        assert_eq!(own.unsaved(), Some(2));
    }

    #[test]
    fn markers_before_the_end_are_no_records() {
        let mut own = LetterPartition::new(0, 5);
        assert!(own.deliver(3));
        own.end();
        assert!(own.is_read());
        own.settle(3);
        assert_eq!(own.unsaved(), Some(5));
    }
}
