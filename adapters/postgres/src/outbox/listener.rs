//! OutboxListener-ups by LISTEN: [`OutboxListener`].

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::Executor as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::guard::catch_panic;
use crate::store::PgStore;

/// As the trigger has it; the payload is the schema.
const CHANNEL: &str = "onceward_outbox";
/// How long the connection may take to open.
const OPENING: Duration = Duration::from_secs(30);
/// Before a lost connection is opened again: until then rows are found by looking.
const AGAIN: Duration = Duration::from_secs(1);

/// Hears of new rows, on a connection of its own that is opened with the first wait.
#[derive(Debug, Default)]
pub(super) struct OutboxListener {
    came: Arc<Notify>,
    listening: OnceLock<AbortOnDropHandle<()>>,
}

impl OutboxListener {
    /// Waits until rows have come since the last wait ended, at most so long.
    pub(super) async fn wait(&self, store: &PgStore, at_most: Duration) {
        self.listening.get_or_init(|| {
            let (store, came) = (store.clone(), Arc::clone(&self.came));
            AbortOnDropHandle::new(tokio::spawn(listen(store, came)))
        });
        let _ = tokio::time::timeout(at_most, self.came.notified()).await;
    }
}

async fn listen(store: PgStore, came: Arc<Notify>) {
    let schema = store.schema();
    let schema = schema.trim_matches('"');
    loop {
        let heard: Result<(), sqlx::Error> = catch_panic(async {
            // Asked for each time: the password may have changed.
            let options = store.listener().options().await?;
            let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(OPENING);
            let pool = pool.after_connect(|conn, _| {
                Box::pin(async move { conn.execute("SET search_path = pg_catalog, pg_temp").await.map(drop) })
            });
            let mut listener = PgListener::connect_with(&pool.connect_lazy_with(options)).await?;
            listener.listen(CHANNEL).await?;
            // Rows may have come before.
            came.notify_one();
            loop {
                match listener.try_recv().await? {
                    Some(notification) if notification.payload() == schema => came.notify_one(),
                    Some(_) => {}
                    // The connection was lost, and is open again.
                    None => came.notify_one(),
                }
            }
        })
        .await;
        if let Err(error) = heard {
            tracing::debug!(%error, "no wake-ups from the outbox for a moment; rows are found by looking");
        }
        tokio::time::sleep(AGAIN).await;
    }
}
