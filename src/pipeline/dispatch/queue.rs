//! Removal of deliveries from the middle of a queue: [`extract`].

use std::collections::VecDeque;

use crate::pipeline::work::Work;

/// Removes and returns the deliveries that `wanted` selects, in their order.
pub(super) fn extract(works: &mut VecDeque<Work>, mut wanted: impl FnMut(&Work) -> bool) -> Vec<Work> {
    if !works.iter().any(&mut wanted) {
        return Vec::new();
    }
    let (taken, left): (Vec<_>, VecDeque<_>) = {
        let mut taken = Vec::new();
        let mut left = VecDeque::with_capacity(works.len());
        for work in works.drain(..) {
            if wanted(&work) { taken.push(work) } else { left.push_back(work) }
        }
        (taken, left)
    };
    *works = left;
    taken
}
