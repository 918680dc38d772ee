//! The end of dispatching: [`Drained`].

/// How the dispatching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Everything that had started was recorded and settled.
    Wholly,
    /// The drain deadline passed with so many runs still going; they were asked to stop, and dropped if they did not.
    Abandoned(usize),
    /// A round panicked; its deliveries were released.
    Panicked,
}
