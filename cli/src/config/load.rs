//! Reads, completes and checks a configuration: [`Config::load`] and [`Config::parse`].

use std::path::Path;

use super::document::Config;
use super::env::Lookup;
use super::key_table::KeyConfig;
use super::origin::{LineIndex, Origin};
use super::remark::{ConfigError, Remark};
use super::{build, check, derived, env, read, syntax};
use crate::handlers::text::io_words;

impl Config {
    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    /// One sentence: the file cannot be read, or what [`Config::parse`] refuses, with the file's name.
    pub fn load(path: &Path, env: Lookup<'_>) -> Result<Self, ConfigError> {
        let source = std::fs::read_to_string(path).map_err(|error| {
            let fix = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "give the path of a configuration, or write one with `onceward init`"
                }
                std::io::ErrorKind::InvalidData => "save it as UTF-8",
                _ => "make the file readable",
            };
            ConfigError(Remark::new(format!("cannot be read ({})", io_words(&error)), fix).file(path))
        })?;
        Self::parse_file(Some(path), &source, env)
    }

    /// Parses and checks a configuration's text. `env` answers for `${NAME}` in its string values.
    ///
    /// # Errors
    /// The first thing that is wrong, in one sentence with line, key and fix, never with a value.
    pub fn parse(source: &str, env: Lookup<'_>) -> Result<Self, ConfigError> {
        Self::parse_file(None, source, env)
    }

    fn parse_file(file: Option<&Path>, source: &str, env: Lookup<'_>) -> Result<Self, ConfigError> {
        let lines = LineIndex::of(source);
        let in_file = |remark: Remark| match file {
            Some(file) => ConfigError(remark.file(file)),
            None => ConfigError(remark),
        };
        let mut table = syntax::parse(source, &lines).map_err(in_file)?;
        let written = env::substitute(table.get_mut(), env, &lines).map_err(in_file)?;
        let origin = Origin::of(file, table.get_ref(), &lines, written);
        if let Some(missing) = build::missing(&origin) {
            return Err(missing);
        }
        let mut config: Self =
            read::read(table).map_err(|fault| ConfigError(origin.place(&fault, &lines)))?;
        config.origin = origin;
        config.fill_in()?;
        check::check(&config)?;
        Ok(config)
    }

    /// Gives the defaults that depend on other values.
    fn fill_in(&mut self) -> Result<(), ConfigError> {
        if self.key.from.is_empty() {
            if self.origin.is_written("key.from") {
                return Err(self.refuse(
                    "key.from",
                    "is an empty list",
                    "name at least one source, such as message-id",
                ));
            }
            self.key.from = KeyConfig::default_for(&self.source.plugin().facts()).ok_or_else(|| {
                self.refuse(
                    "key.from",
                    "is missing, and a file source has no message identity to fall back on",
                    r#"add `from` to [key], such as from = ["json:/id"] or from = ["position"]"#,
                )
            })?;
        }
        derived::derive(self);
        Ok(())
    }
}
