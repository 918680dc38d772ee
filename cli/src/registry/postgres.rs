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
    let options = options(config, store)?.migrate_on_open(purpose == Purpose::Run);
    let store = Arc::new(PgStore::connect(options).await?);
    Ok(OpenStore {
        store: store.clone(),
        checkpoints: store.clone(),
        outbox: Some(Box::new(store.outbox())),
        inbox: Some(Inbox::Postgres(store)),
    })
}

/// What the adapter is told.
pub(super) fn options(config: &Config, store: &PostgresStore) -> Result<PgConfig, Error> {
    let mut options = PgConfig::from_url(store.url.expose())?;
    let login = Login::read(config, "store.postgres", store.credentials())?;
    if let Some(username) = &login.username {
        options = options.username(username);
    }
    if let Some(password) = &login.password {
        options = options.password(password.expose());
    }
    if let Some(file) = store.credentials().password_file {
        // Read for each new connection: it may have been replaced.
        let path = config.resolve(file);
        options =
            options.password_from(move || Ok(password_in(&path, "store.postgres")?.expose().to_owned()));
    }
    if let Some(file) = &store.ca_file {
        options = options.ca(certificates(config, "store.postgres.ca_file", file)?);
    }
    // A little less than the limit of a call, so that what was wrong is known before the call is given up.
    let limit = store.limits().timeout.get().mul_f64(0.9);
    options = options
        .allow_plaintext(store.allow_plaintext)
        .schema(store.schema.as_str())
        .statement_timeout(limit)
        .lock_timeout(LOCK_TIMEOUT.min(limit / 4))
        .connect_timeout(limit)
        .handler_connections(store.connections);
    if let Handler::Sql(sql) = &config.handler {
        options = options.handler_statement_timeout(sql.timeout.get());
    }
    Ok(options)
}
