//! Postgres store for onceward: claims by the batch, inbox transactions, outbox.
