//! Files in the configuration of the `onceward` program: `[source.file]`.

mod findings;
mod inspect;
mod source;
mod temporary;

pub use findings::FINDINGS;
pub use source::FileSource as Source;
