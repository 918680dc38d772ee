//! The reference store, in memory.

/// Keeps keys in this process.
#[derive(Debug, Default)]
pub struct MemoryStore {}
