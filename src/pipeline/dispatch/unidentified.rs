//! Large messages whose keys are still to be derived: [`Unidentified`].

use std::collections::VecDeque;

use crate::pipeline::work::Work;

/// Deliveries whose keys are to be found. Each holds its place: in the window, and in its lane.
#[derive(Default)]
pub(super) struct Unidentified {
    /// Those whose turn has not come, in the order of their arrival.
    pub(super) waiting: VecDeque<Work>,
    pub(super) under_way: usize,
}
