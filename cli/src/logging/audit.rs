//! The log target of audit lines.

/// The target of audit lines, which name the user who changed a key. No filter suppresses them.
pub(crate) const AUDIT: &str = "onceward::audit";
