//! A schema of one test in Postgres: the store's tables, and a table of effects beside them.

use onceward_test_servers::postgres::Postgres;
use onceward_test_support::setup::Setup;

/// A schema of its own. The table of effects has no unique constraint: an effect that happened twice has two rows.
pub(crate) struct Table<'s> {
    pub(crate) server: &'s Postgres,
    name: String,
}

impl<'s> Table<'s> {
    /// Creates it.
    pub(crate) fn create(server: &'s Postgres, name: &str) -> Self {
        server.sql(&format!(
            "CREATE SCHEMA {name}; CREATE TABLE {name}.effects (id text NOT NULL, worked bigint NOT NULL)"
        ));
        Self { server, name: name.to_owned() }
    }

    /// A table that exists already, on a server that may have been stopped since.
    pub(crate) fn of(server: &'s Postgres, name: &str) -> Self {
        Self { server, name: name.to_owned() }
    }

    /// With the store in this schema.
    pub(crate) fn store(&self, setup: Setup) -> Setup {
        setup
            .without("store.sqlite")
            .set("store.postgres.url", self.server.url("postgres"))
            .set("store.postgres.schema", self.name.as_str())
            .set("store.postgres.lease", "2s")
            .set("store.postgres.timeout", "1500ms")
    }

    /// With the store in this schema, and a row in its table of effects for each message. The count takes a while, so that
    /// kills hit it.
    pub(crate) fn handler(&self, setup: Setup) -> Setup {
        let charge = format!(
            "INSERT INTO {}.effects (id, worked) \
             SELECT $1::jsonb->>'id', count(*) FROM generate_series(1, ($1::jsonb->>'steps')::int)",
            self.name
        );
        self.store(setup)
            .without("handler")
            .set("guarantee", "effectively-once")
            .set("handler.sql.statement", charge)
            .set("handler.sql.timeout", "20s")
    }

    /// Rows so far.
    pub(crate) fn count(&self) -> usize {
        self.sql("SELECT count(*) FROM @.effects").parse().expect("a count")
    }

    /// `@` is replaced by the schema.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.server.sql(&sql.replace('@', &self.name))
    }

    /// Every id has its row, and none has two.
    pub(crate) fn assert_exact(&self, ids: &[String], case: &str) {
        let found = self.sql("SELECT id FROM @.effects ORDER BY id COLLATE \"C\"");
        let mut expected: Vec<_> = ids.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(found.lines().collect::<Vec<_>>(), expected, "{case}: rows in the table of effects");
    }
}
