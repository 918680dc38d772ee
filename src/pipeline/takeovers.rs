//! Expired claims that were taken over, each logged once: [`Takeovers`].

use foldhash::{HashSet, HashSetExt};

use crate::key::Key;

/// Keys whose expired claims were taken over, each with how many claims it has lost.
#[derive(Default)]
pub(crate) struct Takeovers(Option<HashSet<(Key, u32)>>);

/// So many are remembered; after that they are logged again.
const REMEMBERED_TAKEOVERS: usize = 10_000;

impl Takeovers {
    /// True the first time that `lost` claims of `key` are seen.
    pub(crate) fn is_new(&mut self, key: Key, lost: u32) -> bool {
        let known = self.0.get_or_insert_with(HashSet::new);
        if known.len() >= REMEMBERED_TAKEOVERS {
            known.clear();
        }
        known.insert((key, lost))
    }
}
