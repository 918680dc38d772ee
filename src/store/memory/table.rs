//! The records of one scope, and the queue of their expiry.

use std::collections::BTreeMap;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::super::transition::{Moment, Record, Step};
use super::super::{KeyRecord, KeyStats, ListQuery};
use super::slots::{Slot, SlotNumber, Slots};
use crate::key::Key;

/// The width of an expiry bucket: 2^20 µs, about a second.
const BUCKET_BITS: u32 = 20;

/// The records of one scope.
///
/// Records lie in the order of their first claims, so that those of a batch are neighbours, and a small index finds them:
/// of the memory that a claim touches only the index entry is far from everything else, and growing moves no record. The index
/// keeps no keys, which lie with their records: its entries are five bytes.
///
/// The expiry queue holds every record once, in a bucket that is due no later than the record expires. Prolonging a
/// record does not move it: [`purge`](Self::purge) does, when it comes across it too early.
#[derive(Debug, Default)]
pub(super) struct Table {
    index: HashTable<SlotNumber>,
    slots: Slots,
    expiry: BTreeMap<u64, Vec<SlotNumber>>,
    fence_floor: u64,
}

impl Table {
    /// Applies a step that may bring the record into being.
    pub(super) fn write<T>(&mut self, key: Key, step: impl FnOnce(&mut Record) -> Step<T>) -> T {
        let Self { index, slots, .. } = self;
        let is_of_key = |place: &SlotNumber| slots.get(*place).key == key;
        let place = match index.entry(hash(&key), is_of_key, |place| hash(&slots.get(*place).key)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(unknown) => {
                let place = slots.take(key);
                unknown.insert(place);
                place
            }
        };
        let slot = self.slots.get_mut(place);
        let fence = slot.record.fence;
        let Step { answer, changed } = step(&mut slot.record);
        if changed {
            // A completion inserted over a later claim's remains carries its own, older fence.
            if slot.record.fence < fence {
                self.fence_floor = self.fence_floor.max(fence);
            }
            enqueue(&mut self.expiry, place, slot);
        }
        answer
    }

    /// Applies a step to a record that exists; `None` if it does not.
    pub(super) fn update<T>(&mut self, key: &Key, step: impl FnOnce(&mut Record) -> Step<T>) -> Option<T> {
        let place = self.place_of(key)?;
        let slot = self.slots.get_mut(place);
        let Step { answer, changed } = step(&mut slot.record);
        if changed {
            enqueue(&mut self.expiry, place, slot);
        }
        Some(answer)
    }

    /// Removes a record; false if there is no unexpired one.
    pub(super) fn forget(&mut self, key: &Key, at: Moment) -> bool {
        let Some(place) = self.place_of(key) else { return false };
        unlist(&mut self.index, key, place);
        let record = self.slots.give_back(place);
        self.fence_floor = self.fence_floor.max(record.fence);
        !record.is_expired(at.now)
    }

    /// The largest fence of all records removed or overwritten since the last call.
    pub(super) fn take_fence_floor(&mut self) -> u64 {
        std::mem::take(&mut self.fence_floor)
    }

    /// Removes up to `limit` expired records and answers how many.
    pub(super) fn purge(&mut self, at: Moment, limit: u64) -> u64 {
        let mut removed = 0;
        while removed < limit
            && let Some(entry) = self.expiry.first_entry()
            && *entry.key() <= at.now >> BUCKET_BITS
        {
            let bucket = *entry.key();
            let mut places = entry.remove();
            let mut not_yet = Vec::new();
            while removed < limit
                && let Some(place) = places.pop()
            {
                let slot = self.slots.get_mut(place);
                if slot.bucket != bucket {
                    // A leftover: the record was removed, or is in another bucket.
                } else if slot.record.is_expired(at.now) {
                    unlist(&mut self.index, &slot.key, place);
                    let record = self.slots.give_back(place);
                    self.fence_floor = self.fence_floor.max(record.fence);
                    removed += 1;
                } else {
                    slot.bucket = slot.record.expires_at() >> BUCKET_BITS;
                    if slot.bucket == bucket {
                        not_yet.push(place);
                    } else {
                        self.expiry.entry(slot.bucket).or_default().push(place);
                    }
                }
            }
            places.append(&mut not_yet);
            if !places.is_empty() {
                self.expiry.insert(bucket, places);
                break;
            }
        }
        removed
    }

    pub(super) fn inspect(&self, key: &Key, at: Moment) -> Option<KeyRecord> {
        self.slots.get(self.place_of(key)?).record.view(*key, at)
    }

    pub(super) fn list(&self, query: &ListQuery, at: Moment) -> Vec<KeyRecord> {
        let mut found: Vec<(&Key, &Record)> = self
            .records()
            .filter(|(key, record)| {
                query.after.is_none_or(|after| **key > after)
                    && query.state.is_none_or(|state| record.state == state)
                    && !record.is_expired(at.now)
            })
            .collect();
        found.sort_unstable_by_key(|(key, _)| **key);
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        found.into_iter().take(limit).filter_map(|(key, record)| record.view(*key, at)).collect()
    }

    pub(super) fn stats(&self, at: Moment) -> KeyStats {
        let mut stats = KeyStats::default();
        for (_, record) in self.records().filter(|(_, record)| !record.is_expired(at.now)) {
            stats.set(record.state, stats.get(record.state) + 1);
        }
        stats
    }

    fn records(&self) -> impl Iterator<Item = (&Key, &Record)> {
        self.index.iter().map(|place| self.slots.get(*place)).map(|slot| (&slot.key, &slot.record))
    }

    fn place_of(&self, key: &Key) -> Option<SlotNumber> {
        self.index.find(hash(key), |place| self.slots.get(*place).key == *key).copied()
    }
}

/// Removes the entry of a key, which lies there.
fn unlist(index: &mut HashTable<SlotNumber>, key: &Key, place: SlotNumber) {
    if let Ok(entry) = index.find_entry(hash(key), |listed| *listed == place) {
        entry.remove();
    }
}

/// Sees to it that the record is looked at no later than it may expire. Its lease is left out: a completion ends it, and
/// would otherwise have to queue again.
fn enqueue(expiry: &mut BTreeMap<u64, Vec<SlotNumber>>, place: SlotNumber, slot: &mut Slot) {
    let bucket = slot.record.written_at.saturating_add(slot.record.ttl) >> BUCKET_BITS;
    if bucket < slot.bucket {
        slot.bucket = bucket;
        expiry.entry(bucket).or_default().push(place);
    }
}

/// The hash by which the index finds a key. Keys are cryptographic hashes already; this only folds their halves, and spreads keys made
/// by hand in tests.
fn hash(key: &Key) -> u64 {
    let (halves, _) = key.as_bytes().as_chunks();
    halves.iter().fold(0, |hash, half| {
        let product =
            u128::from(hash ^ u64::from_le_bytes(*half) ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
        (product as u64) ^ (product >> 64) as u64
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, OwnerToken};
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn at(now: u64) -> Moment {
        Moment { now, fence_floor: 0 }
    }

    fn claim(table: &mut Table, key: u8, ttl_secs: u64, now: u64) -> Claim {
        let ttl = Duration::from_secs(ttl_secs);
        let terms = ClaimTerms { lease: Duration::from_secs(30), max_attempts: 3, ttl };
        let request = ClaimRequest {
            key: Key::from_bytes([key; 16]),
            owner: OwnerToken::from_bytes([key; 16]),
            fingerprint: None,
            generation: 0,
        };
        table.write(request.key, |record| record.claim(at(now), &terms, &request))
    }

    fn queued(table: &Table) -> usize {
        table.expiry.values().map(Vec::len).sum()
    }

    #[test]
    fn a_purge_finds_a_prolonged_record_when_it_really_expires_and_leaves_no_entry_behind() {
        let mut table = Table::default();
        let _ = claim(&mut table, 1, 10, SECOND);
        assert_eq!(table.purge(at(12 * SECOND), 100), 0, "the lease of 30 s counts before the TTL");
        assert_eq!(table.purge(at(41 * SECOND - 1), 100), 0);
        assert_eq!(table.purge(at(41 * SECOND), 100), 1);
        assert_eq!((table.index.len(), queued(&table)), (0, 0));
    }

    #[test]
    fn a_completion_with_a_shorter_ttl_is_found_at_its_own_expiry() {
        let mut table = Table::default();
        let Claim::Claimed(claimed) = claim(&mut table, 1, 100, 0) else { panic!("not claimed") };
        let request = CompleteRequest::new(claimed.lease, Duration::from_secs(5));
        let _ = table.write(claimed.lease.key, |record| record.complete(at(0), &request));
        assert_eq!(table.purge(at(5 * SECOND - 1), 100), 0);
        assert_eq!(table.purge(at(5 * SECOND), 100), 1);
        assert_eq!(table.purge(at(1_000 * SECOND), 100), 0, "the entry of the longer TTL is a leftover");
        assert_eq!(queued(&table), 0);
    }

    #[test]
    fn a_purge_stops_at_its_limit_and_the_next_one_goes_on() {
        let mut table = Table::default();
        for key in 0..10 {
            let _ = claim(&mut table, key, 10, 0);
        }
        assert_eq!(table.purge(at(100 * SECOND), 3), 3);
        assert_eq!(table.purge(at(100 * SECOND), 3), 3);
        assert_eq!(table.purge(at(100 * SECOND), 100), 4);
        assert_eq!((table.index.len(), queued(&table)), (0, 0));
    }

    #[test]
    fn a_forgotten_key_claimed_again_is_purged_once() {
        let mut table = Table::default();
        let _ = claim(&mut table, 1, 10, 0);
        assert!(table.forget(&Key::from_bytes([1; 16]), at(0)));
        let _ = claim(&mut table, 1, 10, 0);
        assert_eq!(table.purge(at(100 * SECOND), 100), 1);
        assert_eq!((table.index.len(), queued(&table)), (0, 0));
    }

    #[test]
    fn a_place_that_is_used_again_is_not_purged_for_the_record_that_was_there() {
        let mut table = Table::default();
        let _ = claim(&mut table, 1, 10, 0);
        assert!(table.forget(&Key::from_bytes([1; 16]), at(0)));
        let _ = claim(&mut table, 2, 1_000, 0);
        assert_eq!(table.purge(at(500 * SECOND), 100), 0, "the entry of the forgotten record is a leftover");
        assert!(table.inspect(&Key::from_bytes([2; 16]), at(500 * SECOND)).is_some());
        assert_eq!(table.purge(at(2_000 * SECOND), 100), 1);
        assert_eq!((table.index.len(), queued(&table)), (0, 0));
    }
}
