//! The migrations of onceward's SQL stores, embedded: each is applied once, in order, and never changed after its release.
//!
//! The adapters apply them and record them in their own table; the application's migrations and their records are not
//! touched. Names begin with `onceward_` (SQLite) or are in a schema of their own (Postgres), so that both can share a
//! database.

/// One migration of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The version it leads to, from 1, without gaps.
    pub version: u32,
    /// The name, as in the file's name.
    pub name: &'static str,
    /// The statements.
    pub sql: &'static str,
}

/// The migrations of the SQLite schema.
pub const SQLITE: &[Migration] = &[
    Migration { version: 1, name: "keys", sql: include_str!("../sqlite/0001_keys.sql") },
    Migration { version: 2, name: "outbox", sql: include_str!("../sqlite/0002_outbox.sql") },
    Migration { version: 3, name: "outbox_headers", sql: include_str!("../sqlite/0003_outbox_headers.sql") },
    Migration { version: 4, name: "audit", sql: include_str!("../sqlite/0004_audit.sql") },
    Migration { version: 5, name: "audit_entries", sql: include_str!("../sqlite/0005_audit_entries.sql") },
];

/// The migrations of the Postgres schema. `@schema@` is replaced by the name of the schema, which contains all tables; their
/// names have no prefix.
pub const POSTGRES: &[Migration] = &[
    Migration { version: 1, name: "keys", sql: include_str!("../postgres/0001_keys.sql") },
    Migration { version: 2, name: "outbox", sql: include_str!("../postgres/0002_outbox.sql") },
    Migration { version: 3, name: "offsets", sql: include_str!("../postgres/0003_offsets.sql") },
    Migration { version: 4, name: "complete", sql: include_str!("../postgres/0004_complete.sql") },
    Migration { version: 5, name: "commit", sql: include_str!("../postgres/0005_commit.sql") },
    Migration { version: 6, name: "edges", sql: include_str!("../postgres/0006_edges.sql") },
    Migration { version: 7, name: "names", sql: include_str!("../postgres/0007_names.sql") },
    Migration { version: 8, name: "audit", sql: include_str!("../postgres/0008_audit.sql") },
    Migration { version: 9, name: "audit_entries", sql: include_str!("../postgres/0009_audit_entries.sql") },
];

/// The oldest version of the Postgres schema that a program must support to use the newest one: later migrations only add to
/// it. So workers of two releases run concurrently during a rollout.
pub const POSTGRES_NEEDS: u32 = 1;

/// The migrations of the Postgres schema that this program knows, and the oldest version that another program must support to
/// use the schema after them.
pub fn postgres() -> (&'static [Migration], u32) {
    #[cfg(feature = "testing")]
    if let Some(replaced) = pretend::replaced() {
        return replaced;
    }
    (POSTGRES, POSTGRES_NEEDS)
}

/// For tests of two versions on one schema: replaces the migrations that this process knows.
#[cfg(feature = "testing")]
pub mod pretend {
    use std::sync::OnceLock;

    use super::Migration;

    static REPLACED: OnceLock<(Vec<Migration>, u32)> = OnceLock::new();

    /// Makes [`postgres`](super::postgres) return these from now on. Only the first call has an effect.
    pub fn postgres(steps: Vec<Migration>, needs: u32) {
        let _ = REPLACED.set((steps, needs));
    }

    pub(super) fn replaced() -> Option<(&'static [Migration], u32)> {
        REPLACED.get().map(|(steps, needs)| (steps.as_slice(), *needs))
    }
}

/// The version that a list of migrations leads to; 0 for none.
pub const fn latest(steps: &[Migration]) -> u32 {
    match steps.last() {
        Some(step) => step.version,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_one_without_gaps() {
        for steps in [SQLITE, POSTGRES] {
            for (expected, step) in (1..).zip(steps) {
                assert_eq!(step.version, expected, "{}", step.name);
            }
            assert_eq!(latest(steps) as usize, steps.len());
        }
        assert!((1..=latest(POSTGRES)).contains(&POSTGRES_NEEDS));
    }

    /// A database with another encoding rejects characters that it cannot represent, in comments too.
    #[test]
    fn every_step_is_plain_ascii() {
        for step in SQLITE.iter().chain(POSTGRES) {
            assert!(step.sql.is_ascii(), "{}", step.name);
        }
    }

    #[test]
    fn every_table_and_index_of_postgres_names_the_schema() {
        for line in POSTGRES.iter().flat_map(|step| step.sql.lines()) {
            if line.starts_with("CREATE ") {
                assert!(line.contains(" \"@schema@\"."), "{line}");
            }
        }
    }

    #[test]
    fn every_table_and_index_bears_the_prefix() {
        for line in SQLITE.iter().flat_map(|step| step.sql.lines()) {
            for start in ["CREATE TABLE ", "CREATE INDEX ", "CREATE UNIQUE INDEX ", "CREATE TRIGGER "] {
                if let Some(name) = line.strip_prefix(start) {
                    assert!(name.starts_with("onceward_"), "{name}");
                }
            }
        }
    }
}
