//! The start check: what the promises rest on.

use onceward::Error;
use onceward::store::{Advice, AdviceLevel};
use sqlx::{Executor, Row};

use crate::config::PgConfig;
use crate::error::store_error;
use crate::migrate;
use crate::store::close;

/// Looks at the schema and the server's settings, and says what it found.
pub(crate) async fn check(config: &PgConfig) -> Result<Vec<Advice>, Error> {
    let failed = |error| store_error("check the Postgres store", error);
    let mut conn = config.connect().await?;
    let version = migrate::check(&mut conn, config.schema_name()).await?;
    let row = conn
        .fetch_one(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int, \
             current_setting('fsync') = 'on', pg_is_in_recovery(), \
             current_setting('default_transaction_read_only') = 'on', \
             current_setting('full_page_writes') = 'on', current_setting('synchronous_standby_names')",
        )
        .await
        .map_err(failed)?;
    close(conn).await;
    let text = |n| row.try_get::<String, _>(n).map_err(failed);
    let flag = |n| row.try_get::<bool, _>(n).map_err(failed);
    let number: i32 = row.try_get(1).map_err(failed)?;
    let (server, place, schema) = (text(0)?, config.place(), config.schema_name());
    let advice = Advice::new;
    let mut found = vec![advice(
        AdviceLevel::Ok,
        format!("Postgres {server} at {place}: schema {schema}, version {version}"),
    )];
    if number < 130_000 {
        found
            .push(advice(AdviceLevel::Error, format!("Postgres {server} is too old; 13 or later is needed")));
    }
    if flag(3)? || flag(4)? {
        found.push(advice(AdviceLevel::Error, format!("{place} is read-only; name the primary")));
    }
    found.push(if flag(2)? && flag(5)? {
        advice(
            AdviceLevel::Ok,
            "fsync and full_page_writes are on: completions survive a power cut".to_owned(),
        )
    } else {
        let text = "fsync or full_page_writes is off: a power cut loses completions; turn both on".to_owned();
        advice(AdviceLevel::Error, text)
    });
    if text(6)?.is_empty() {
        let text = "no synchronous standby: a failover may lose the last completions".to_owned();
        found.push(advice(AdviceLevel::Warning, text));
    }
    Ok(found)
}
