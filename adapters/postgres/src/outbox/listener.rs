//! Listens for notifications of new rows: [`OutboxListener`].

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::Executor as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::guard::catch_panic;
use crate::store::PgStore;

/// The channel of the trigger; the payload is the schema.
const CHANNEL: &str = "onceward_outbox";
/// Time limit of opening the connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Delay before a lost connection is reopened; until then rows are found by polling.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Receives notifications of new rows, on its own connection, which the first wait opens.
#[derive(Debug, Default)]
pub(super) struct OutboxListener {
    new_rows: Arc<Notify>,
    listening: OnceLock<AbortOnDropHandle<()>>,
}

impl OutboxListener {
    /// Waits for rows written since the last wait ended, for at most `at_most`.
    pub(super) async fn wait(&self, store: &PgStore, at_most: Duration) {
        self.listening.get_or_init(|| {
            let (store, new_rows) = (store.clone(), Arc::clone(&self.new_rows));
            AbortOnDropHandle::new(tokio::spawn(listen(store, new_rows)))
        });
        let _ = tokio::time::timeout(at_most, self.new_rows.notified()).await;
    }
}

async fn listen(store: PgStore, new_rows: Arc<Notify>) {
    let schema = store.schema();
    let schema = schema.trim_matches('"');
    loop {
        let outcome: Result<(), sqlx::Error> = catch_panic(async {
            // Read each time: the password may have changed.
            let options = store.listener().options().await?;
            let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(OPEN_TIMEOUT);
            let pool = pool.after_connect(|conn, _| {
                Box::pin(async move { conn.execute("SET search_path = pg_catalog, pg_temp").await.map(drop) })
            });
            let mut listener = PgListener::connect_with(&pool.connect_lazy_with(options)).await?;
            listener.listen(CHANNEL).await?;
            // Rows may have been written before.
            new_rows.notify_one();
            loop {
                match listener.try_recv().await? {
                    Some(notification) if notification.payload() == schema => new_rows.notify_one(),
                    Some(_) => {}
                    // The connection was lost and reopened.
                    None => new_rows.notify_one(),
                }
            }
        })
        .await;
        if let Err(error) = outcome {
            tracing::debug!(%error, "outbox notifications interrupted; rows are found by polling");
        }
        tokio::time::sleep(RECONNECT_DELAY).await;
    }
}
