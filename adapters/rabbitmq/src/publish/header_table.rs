//! The header table of a published message, limited to the size of a frame: [`HeaderTable`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use lapin::types::{AMQPValue, FieldArray, ShortString};
use onceward::dead_letter::{HEADER_ERROR, HEADER_PREFIX};

use crate::format::native::{field_bytes, long_string};

/// The header with the number of dropped headers.
pub(super) const DROPPED_HEADERS: &str = "onceward-headers-left-out";
/// The length in bytes to which the last error is truncated when the headers exceed a frame.
pub(super) const SHORT_ERROR_BYTES: usize = 64;

/// The header table of a message.
#[derive(Debug, Default)]
pub(super) struct HeaderTable(pub(super) BTreeMap<ShortString, AMQPValue>);

impl HeaderTable {
    /// Adds a header; repeated names become an array, since a table has unique names.
    pub(super) fn add(&mut self, name: ShortString, value: AMQPValue) {
        match self.0.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert(value)),
            Entry::Occupied(mut entry) => match entry.get_mut() {
                AMQPValue::FieldArray(values) => values.push(value),
                first => {
                    let first_value = std::mem::replace(first, AMQPValue::Void);
                    *first = AMQPValue::FieldArray(FieldArray::from(vec![first_value, value]));
                }
            },
        }
    }

    /// Sets a header, whatever was there.
    pub(super) fn replace(&mut self, name: ShortString, value: AMQPValue) {
        self.0.insert(name, value);
    }

    /// Adds a header unless there is one of that name.
    pub(super) fn add_missing(&mut self, name: &str, value: AMQPValue) {
        self.0.entry(name.into()).or_insert(value);
    }

    /// Shrinks the headers to `limit` bytes: truncates our last error, then drops the largest headers of the producer.
    pub(super) fn shrink_to(&mut self, limit: usize) {
        let size = |(name, value): (&ShortString, &AMQPValue)| field_bytes(name.as_str(), value);
        let mut total: usize = self.0.iter().map(size).sum();
        if total > limit
            && let Some(AMQPValue::LongString(error)) = self.0.get_mut(HEADER_ERROR)
            && error.as_bytes().len() > SHORT_ERROR_BYTES
        {
            let start = String::from_utf8_lossy(&error.as_bytes()[..SHORT_ERROR_BYTES]);
            let shorter = AMQPValue::LongString(start.trim_end_matches('\u{fffd}').into());
            self.0.insert(HEADER_ERROR.into(), shorter);
            total = self.0.iter().map(size).sum();
        }
        if total <= limit {
            return;
        }
        let limit = limit.saturating_sub(field_bytes(DROPPED_HEADERS, &long_string("10000")));
        let mut by_size: Vec<_> = self.0.iter().map(|field| (size(field), field.0.clone())).collect();
        by_size.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut count = 0_usize;
        for (bytes, name) in by_size {
            if total > limit && !name.as_str().starts_with(HEADER_PREFIX) {
                self.0.remove(&name);
                total -= bytes;
                count += 1;
            }
        }
        tracing::warn!(
            headers = count,
            "headers dropped: larger than a frame of the broker; raise the broker's frame_max"
        );
        self.0.insert(DROPPED_HEADERS.into(), long_string(count.to_string()));
    }
}
