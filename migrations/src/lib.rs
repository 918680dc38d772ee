//! The schema of onceward's SQL stores, embedded: each step once, in order, never changed after its release.
//!
//! The adapters apply the steps and keep book of them in a table of their own; the application's own migrations and
//! their bookkeeping are left alone. Names begin with `onceward_` (SQLite) or lie in a schema of
//! their own (Postgres), so that both may live in one database.

/// One step of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// From 1, without gaps.
    pub version: u32,
    /// What it brings, as in the file's name.
    pub name: &'static str,
    /// The statements.
    pub sql: &'static str,
}

/// The steps of the SQLite schema.
pub const SQLITE: &[Migration] = &[
    Migration { version: 1, name: "keys", sql: include_str!("../sqlite/0001_keys.sql") },
    Migration { version: 2, name: "outbox", sql: include_str!("../sqlite/0002_outbox.sql") },
    Migration { version: 3, name: "outbox_headers", sql: include_str!("../sqlite/0003_outbox_headers.sql") },
];

/// The steps of the Postgres schema. `@schema@` in them stands for the schema's name; all tables lie in that schema, so
/// their names bear no prefix.
pub const POSTGRES: &[Migration] = &[
    Migration { version: 1, name: "keys", sql: include_str!("../postgres/0001_keys.sql") },
    Migration { version: 2, name: "outbox", sql: include_str!("../postgres/0002_outbox.sql") },
    Migration { version: 3, name: "offsets", sql: include_str!("../postgres/0003_offsets.sql") },
    Migration { version: 4, name: "complete", sql: include_str!("../postgres/0004_complete.sql") },
    Migration { version: 5, name: "commit", sql: include_str!("../postgres/0005_commit.sql") },
    Migration { version: 6, name: "edges", sql: include_str!("../postgres/0006_edges.sql") },
    Migration { version: 7, name: "names", sql: include_str!("../postgres/0007_names.sql") },
];

/// The step of the Postgres schema that a program must know at least to use a schema with all steps: those after it only add
/// what such a program does not ask for. So workers of two releases run side by side while one is rolled out.
pub const POSTGRES_NEEDS: u32 = 1;

/// The steps of the Postgres schema that this program knows, and the one of them that another program must know at least to use
/// the schema after them.
pub fn postgres() -> (&'static [Migration], u32) {
    #[cfg(feature = "testing")]
    if let Some(later) = pretend::told() {
        return later;
    }
    (POSTGRES, POSTGRES_NEEDS)
}

/// For tests of two versions on one schema: makes this process one that knows other steps.
#[cfg(feature = "testing")]
pub mod pretend {
    use std::sync::OnceLock;

    use super::Migration;

    static TOLD: OnceLock<(Vec<Migration>, u32)> = OnceLock::new();

    /// From here on [`postgres`](super::postgres) answers this; the first call counts.
    pub fn postgres(steps: Vec<Migration>, needs: u32) {
        let _ = TOLD.set((steps, needs));
    }

    pub(super) fn told() -> Option<(&'static [Migration], u32)> {
        TOLD.get().map(|(steps, needs)| (steps.as_slice(), *needs))
    }
}

/// The version a list of steps leads to; 0 for none.
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

    /// A database of another encoding refuses what it cannot hold, in comments too.
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
