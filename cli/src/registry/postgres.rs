//! Maps `[store.postgres]` to its adapter.

use std::sync::Arc;
use std::time::Duration;

use onceward::Error;
use onceward_postgres::{PgConfig, PgStore};

use super::credentials::{Login, certificates, password_in};
use super::store::{Inbox, OpenStore, Purpose};
use crate::config::{Config, Handler, PostgresStore};

/// How long a claim waits for a rival's uncommitted write at most.
const LOCK_TIMEOUT: Duration = Duration::from_millis(250);

pub(super) async fn open(
    config: &Config,
    store: &PostgresStore,
    purpose: Purpose,
) -> Result<OpenStore, Error> {
    let mut config = options(config, store)?;
    config.options.migrate = purpose == Purpose::Run;
    let store = Arc::new(PgStore::open(config).await?);
    Ok(OpenStore {
        store: store.clone(),
        checkpoints: store.clone(),
        outbox: Some(Box::new(store.outbox())),
        inbox: Some(Inbox::Postgres(store)),
    })
}

/// What the adapter is told.
pub(super) fn options(config: &Config, store: &PostgresStore) -> Result<PgConfig, Error> {
    let mut adapter = PgConfig::new(store.url.expose());
    let login = Login::read(config, "store.postgres", store.credentials())?;
    adapter.endpoint.username = login.username;
    adapter.endpoint.password = login.password.map(|password| password.expose().to_owned());
    if let Some(file) = store.credentials().password_file {
        // Read for each new connection: it may have been replaced.
        let path = config.resolve(file);
        let source = move || Ok(password_in(&path, "store.postgres")?.expose().to_owned());
        adapter.endpoint.password_source = Some(Arc::new(source));
    }
    if let Some(file) = &store.ca_file {
        adapter.endpoint.ca_pem = Some(certificates(config, "store.postgres.ca_file", file)?);
    }
    adapter.endpoint.allow_plaintext = store.allow_plaintext;
    // A little less than the limit of a call, so that what was wrong is known before the call is given up.
    let limit = store.limits().timeout.get().mul_f64(0.9);
    adapter.options.schema.clone_from(&store.schema);
    adapter.options.statement_timeout = limit;
    adapter.options.lock_timeout = LOCK_TIMEOUT.min(limit / 4);
    adapter.options.connect_timeout = limit;
    adapter.options.handler_connections = Some(store.connections);
    if let Handler::Sql(sql) = &config.handler {
        adapter.options.handler_statement_timeout = Some(sql.timeout.get());
    }
    Ok(adapter)
}
