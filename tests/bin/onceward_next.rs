//! The `onceward` program as its next version would be: it knows one more step of the Postgres schema, which adds what this
//! version does not ask for.
//!
//! `ONCEWARD_NEXT_NEEDS` sets which step a program must know at least to use the schema after it; by default the first.

use std::process::ExitCode;

use onceward_migrations::{Migration, POSTGRES, POSTGRES_NEEDS, latest, pretend};

/// Additive, and yet it locks the table for a moment.
const STEP: &str = r#"
ALTER TABLE "@schema@".keys ADD COLUMN region smallint;
CREATE TABLE "@schema@".regions (id smallint NOT NULL PRIMARY KEY, name text NOT NULL);
CREATE INDEX keys_by_region ON "@schema@".keys (region) WHERE region IS NOT NULL;
"#;

fn main() -> ExitCode {
    let mut steps = POSTGRES.to_vec();
    steps.push(Migration { version: latest(POSTGRES) + 1, name: "regions", sql: STEP });
    let needs = std::env::var("ONCEWARD_NEXT_NEEDS").ok().and_then(|needs| needs.parse().ok());
    pretend::postgres(steps, needs.unwrap_or(POSTGRES_NEEDS));
    onceward_cli::main()
}
