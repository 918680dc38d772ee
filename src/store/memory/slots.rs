//! Storage of records in chunks that never move, in the order of their first claims.

use super::super::transition::Record;
use crate::key::Key;

/// Slots in a chunk. The chunks make growing cheap: nothing is copied.
const CHUNK: usize = 1_024;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotNumber(u32);

/// A record, or the room for one.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) key: Key,
    pub(super) record: Record,
    /// The bucket of the expiry queue that holds the record; the largest number for no bucket.
    pub(super) bucket: u64,
}

/// All slots of a table.
#[derive(Debug, Default)]
pub(super) struct Slots {
    chunks: Vec<Vec<Slot>>,
    free: Vec<SlotNumber>,
}

impl Slots {
    /// Room for the record of `key`.
    ///
    /// # Panics
    /// With more than 2^32 records, which no memory holds.
    pub(super) fn take(&mut self, key: Key) -> SlotNumber {
        let slot = Slot { key, record: Record::nothing(), bucket: u64::MAX };
        if let Some(place) = self.free.pop() {
            *self.get_mut(place) = slot;
            return place;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let number = self.chunks.len() - 1;
        let chunk = &mut self.chunks[number];
        chunk.push(slot);
        SlotNumber(u32::try_from(number * CHUNK + chunk.len() - 1).expect("fewer than 2^32 records"))
    }

    /// Takes the record out. The place may be given to another.
    pub(super) fn give_back(&mut self, place: SlotNumber) -> Record {
        let slot = self.get_mut(place);
        slot.bucket = u64::MAX;
        let record = std::mem::replace(&mut slot.record, Record::nothing());
        self.free.push(place);
        record
    }

    pub(super) fn get(&self, place: SlotNumber) -> &Slot {
        let n = place.0 as usize;
        &self.chunks[n / CHUNK][n % CHUNK]
    }

    pub(super) fn get_mut(&mut self, place: SlotNumber) -> &mut Slot {
        let n = place.0 as usize;
        &mut self.chunks[n / CHUNK][n % CHUNK]
    }
}
