//! All that an error may reveal, for tests of what it must not: [`all_told`].

use std::error::Error;
use std::fmt::Write as _;

/// Its text and its debug forms, and those of its causes.
#[must_use]
pub fn all_told(error: &(dyn Error + 'static)) -> String {
    let mut told = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string does not fail.
        let _ = write!(told, " {cause} {cause:?}");
        source = cause.source();
    }
    told
}
