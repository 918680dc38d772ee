//! Finds, identifies and vets the file that a source reads.

pub(crate) mod attach;
pub(crate) mod content;
pub(crate) mod incarnation;
pub(crate) mod signatures;

pub use content::check_content;
