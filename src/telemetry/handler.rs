//! Availability of a pipeline's handler: [`HandlerState`].

/// Whether a handler works, as far as its runs show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HandlerState {
    /// It does, or has not run yet.
    #[default]
    Up,
    /// It does not, for this reason. The pipeline lets single messages probe, one by one, whether it works again.
    Down(String),
}
