//! Files in the configuration of the `onceward` program: `[source.file]`.

mod inspect;
mod source;

pub use source::FileSource as Source;
