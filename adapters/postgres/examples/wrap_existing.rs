//! A loop that writes to Postgres through its own pool, and the same loop with each effect once: at most 10 lines changed.
//!
//! ```sh
//! cargo run -p onceward-postgres --example wrap_existing_postgres -- postgres://app@127.0.0.1/shop
//! ```
//!
//! Loop, pool and transaction stay the user's. The completion is the transaction's last statement, so both are committed or
//! neither, whichever process is killed, at whatever moment.
#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, unreachable_pub, dead_code)]

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A message as some broker's client hands it over.
pub struct Order {
    pub id: String,
    pub payload: String,
    pub acked: oneshot::Sender<bool>,
}

pub type Orders = Receiver<Order>;

impl Order {
    fn ack(self) {
        let _ = self.acked.send(true);
    }

    fn give_back(self) {
        let _ = self.acked.send(false);
    }
}

/// What many have: a copy of a message has its effect again.
pub mod before {
    use sqlx::PgPool;

    use super::{Error, Order, Orders};

    pub async fn consume(pool: PgPool, mut orders: Orders) -> Result<(), Error> {
        while let Some(order) = orders.recv().await {
            match charge(&pool, &order).await {
                Ok(_) => order.ack(),
                error => {
                    eprintln!("not charged: {error:?}");
                    order.give_back();
                }
            }
        }
        Ok(())
    }

    async fn charge(pool: &PgPool, order: &Order) -> Result<(), Error> {
        let mut tx = pool.begin().await?;
        let charge = sqlx::query("INSERT INTO charges (payload) VALUES ($1)").bind(&order.payload);
        charge.execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// The same loop, each effect once.
pub mod after {
    use onceward::{Deduplicator, HeldClaim, Key, OnceConfig, Scope};
    use onceward_postgres::PgStore;
    use sqlx::PgPool;
    use std::sync::Arc;

    use super::{Error, Order, Orders};

    pub async fn consume(pool: PgPool, mut orders: Orders, store: Arc<PgStore>) -> Result<(), Error> {
        let once = Deduplicator::new(Scope::parse("billing")?, store.clone(), OnceConfig::default())?;
        while let Some(order) = orders.recv().await {
            let key = Key::of(once.scope(), &order.id)?;
            match once.once(&key, async |claim| charge(&pool, &order, &store, claim).await).await {
                Ok(outcome) if outcome.may_ack() => order.ack(),
                error => {
                    eprintln!("not charged: {error:?}");
                    order.give_back();
                }
            }
        }
        Ok(())
    }

    async fn charge(pool: &PgPool, order: &Order, store: &PgStore, claim: &HeldClaim) -> Result<(), Error> {
        let mut tx = pool.begin().await?;
        let charge = sqlx::query("INSERT INTO charges (payload) VALUES ($1)").bind(&order.payload);
        charge.execute(&mut *tx).await?;
        store.complete_within(&mut tx, claim.lease()).await?;
        tx.commit().await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    use onceward_postgres::{PgOptions, PgStore};

    let url = std::env::args().nth(1).ok_or("give the database's URL as the argument")?;
    let pool = sqlx::PgPool::connect(&url).await?;
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS charges (payload text NOT NULL)").execute(&pool).await?;
    let (orders, received) = tokio::sync::mpsc::channel(1);
    // The application's own pool, for its own transactions; claims have connections of their own.
    let store = PgStore::from_client(pool.clone(), PgOptions::default()).await?;
    tokio::spawn(after::consume(pool, received, store.into()));
    for id in ["order 1", "order 2", "order 1"] {
        let (acked, told) = oneshot::channel();
        orders.send(Order { id: id.to_owned(), payload: id.to_owned(), acked }).await?;
        println!("{id}: acked {}", told.await?);
    }
    Ok(())
}
