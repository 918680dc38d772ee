//! Filter rules for the log lines of a client library: [`LogRule`].

/// A rule for the log lines of a library that an adapter uses. They often repeat, without context or fix, what the adapter logs
/// itself: a lost connection, a returned message, a slow statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRule {
    /// The library's log target, such as `lapin`.
    pub target: &'static str,
    /// The level at which its lines are logged unless the filter names the target, or asks for `debug`: `off` to `trace`.
    pub level: &'static str,
    /// Its lines at `trace` hold payloads or passwords: they are never logged.
    pub has_secrets_at_trace: bool,
    /// Targets within it that are never logged at any level, such as one that prints whole messages.
    pub never: &'static [&'static str],
}

impl LogRule {
    /// A rule for a library whose lines hold no secrets.
    pub const fn new(target: &'static str, level: &'static str) -> Self {
        Self { target, level, has_secrets_at_trace: false, never: &[] }
    }
}
