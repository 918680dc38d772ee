//! The secrets of a table, whatever its role: [`Secrets`].

use std::path::PathBuf;

use crate::{Context, Exposure};

/// How the secrets of a table could be read by others. A table without secrets implements it without a method.
pub trait Secrets {
    /// A connection on which a credential could be read by others. None by default.
    fn exposure(&self) -> Option<Exposure> {
        None
    }

    /// The files with secrets that the table names, each with its key. None by default.
    fn secret_files(&self, context: &Context<'_>) -> Vec<(String, PathBuf)> {
        let _ = context;
        Vec::new()
    }
}
