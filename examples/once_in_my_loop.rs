//! A consumer loop of your own, with one call around the effect. Keys are in a SQLite file and outlive the process.
//!
//! ```sh
//! cargo run -p onceward-examples --bin once_in_my_loop
//! ```
//!
//! It prints
//!
//! ```text
//! charge 4711
//! ack 4711
//! ack 4711
//! charge 4712: the bank is closed
//! nack 4712
//! charge 4712
//! ack 4712
//! ```

use std::sync::Arc;

use onceward::{Deduplicator, Key, Once, OnceConfig, Scope};
use onceward_sqlite::{SqliteConfig, SqliteStore};

/// The effect. The fence grows with every attempt; a system that keeps it can refuse a late writer.
async fn charge(order: &str, _fence: u64, attempt: u32) -> Result<(), String> {
    if order == "4712" && attempt == 1 {
        println!("charge {order}: the bank is closed");
        return Err("the bank is closed".to_owned());
    }
    println!("charge {order}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let store = Arc::new(SqliteStore::open(SqliteConfig::new(directory.path().join("onceward.db"))).await?);
    let scope = Scope::parse("billing")?;
    let once = Deduplicator::new(scope.clone(), store, OnceConfig::default())?;

    // In your program: the deliveries of your own client.
    for order in ["4711", "4711", "4712", "4712"] {
        let key = Key::of(&scope, order)?;
        let outcome =
            once.once(&key, async |claim| charge(order, claim.fence(), claim.attempt()).await).await;
        match outcome {
            // The effect has happened, now or earlier.
            Ok(outcome) if outcome.may_ack() => println!("ack {order}"),
            // All attempts are used up: publish a dead letter, then say so, and ack.
            Ok(Once::Exhausted(key)) => drop(key.dead_lettered().await?),
            // Another worker runs it, or it failed: let the broker deliver it again.
            Ok(_) | Err(_) => println!("nack {order}"),
        }
    }
    Ok(())
}
