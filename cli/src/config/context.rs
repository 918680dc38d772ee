//! Shows each plugin the rest of the configuration: [`Contexts`].

use std::path::PathBuf;

use onceward::{HeaderTrust, PipelineConfig};
use onceward_plugin::{Context, Exposure, Finding, HandlerFacts, Secrets};

use super::core::{key_sources, pipeline_config};
use super::document::Config;
use super::handler::Handler;
use super::policy::OwnHeaders;

/// The parts of a configuration in the core's types, from which the [`Context`] of each plugin is made.
pub(crate) struct Contexts<'c> {
    config: &'c Config,
    pipeline: PipelineConfig,
    key_sources: Vec<onceward::KeySource>,
    handler: String,
    source: String,
    store: String,
    is_written: Box<dyn Fn(&str) -> bool + Send + Sync + 'c>,
}

impl<'c> Contexts<'c> {
    /// Those of a configuration whose derived defaults are filled in.
    pub(crate) fn of(config: &'c Config) -> Self {
        Self {
            config,
            pipeline: pipeline_config(config, false),
            key_sources: key_sources(config),
            handler: config.handler.path(),
            source: format!("source.{}", config.source.name()),
            store: format!("store.{}", config.store.name()),
            is_written: Box::new(|key| config.origin.is_written(key)),
        }
    }

    /// The context of `[source.NAME]`.
    pub(crate) fn source(&self) -> Context<'_> {
        self.table(&self.source)
    }

    /// The context of `[store.NAME]`.
    pub(crate) fn store(&self) -> Context<'_> {
        self.table(&self.store)
    }

    /// The context of the handler's table.
    pub(crate) fn handler(&self) -> Context<'_> {
        self.table(&self.handler)
    }

    /// The context of any table.
    pub(crate) fn table<'t>(&'t self, table: &'t str) -> Context<'t> {
        Context {
            table,
            directory: self.config.directory(),
            is_written: &*self.is_written,
            pipeline: &self.pipeline,
            key_sources: &self.key_sources,
            dead_letter: self.config.dead_letter.as_ref().map(|dead_letter| &dead_letter.to),
            header_trust: match self.config.own_headers() {
                OwnHeaders::Ignore => HeaderTrust::Ignore,
                OwnHeaders::Authenticated => HeaderTrust::Authenticated,
                OwnHeaders::Trusted => HeaderTrust::Trusted,
            },
            handler: HandlerFacts {
                table: &self.handler,
                timeout: self.config.handler.timeout().get(),
                is_transactional: matches!(self.config.handler, Handler::Sql(_)),
            },
        }
    }

    /// The files with passwords or private keys that are named, each with its key.
    pub(super) fn secret_files(&self) -> Vec<(String, PathBuf)> {
        let token = self.config.telemetry.token_file.as_deref();
        let token = token.map(|file| ("telemetry.token_file".to_owned(), self.config.resolve(file)));
        let of_tables = self.secrets().flat_map(|(table, secrets)| secrets.secret_files(&self.table(table)));
        of_tables.chain(token).collect()
    }

    /// All connections on which a credential could be read by others, each with its table.
    pub(super) fn exposures(&self) -> impl Iterator<Item = (&str, Exposure)> {
        self.secrets().filter_map(|(table, secrets)| Some((table, secrets.exposure()?)))
    }

    /// The tables that may have secrets, each with its name.
    fn secrets(&self) -> impl Iterator<Item = (&str, &dyn Secrets)> {
        let Config { source, store, handler, outbox, .. } = self.config;
        let handler: Option<&dyn Secrets> = match handler {
            Handler::Publish(target) => Some(target.plugin()),
            Handler::Http(http) => Some(http),
            _ => None,
        };
        let handler = handler.map(|secrets| (self.handler.as_str(), secrets));
        let relays = outbox.targets().into_iter().map(|(table, relay)| (table, relay as &dyn Secrets));
        let run: [(&str, &dyn Secrets); 2] = [(&self.source, source.plugin()), (&self.store, store.plugin())];
        run.into_iter().chain(handler).chain(relays)
    }

    /// What plugins advise.
    pub(super) fn advice(&self) -> Vec<Finding> {
        let source = self.config.source.plugin().advice(&self.source());
        let store = self.config.store.plugin().advice(&self.store());
        source.into_iter().chain(store).collect()
    }
}

impl Config {
    /// The files with passwords or private keys that are named, each with the key that names it.
    pub fn secret_files(&self) -> Vec<(String, PathBuf)> {
        Contexts::of(self).secret_files()
    }
}
