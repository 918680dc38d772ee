//! The adapter's name for a delivery: [`Tag`].

/// The adapter's own name for a delivery. `epoch` distinguishes channels, assignments or handles: a tag of an old epoch
/// settles nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// Channel epoch, assignment generation and the like.
    pub epoch: u64,
    /// Delivery tag, offset, slot of a receipt handle.
    pub number: u64,
}
