//! Meanings of the codes of findings about Postgres.

use onceward_plugin::FindingDoc;

/// The codes, in alphabetical order.
pub const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "postgres-asynchronous-standbys",
        "Standbys replicate asynchronously. A failover loses the last completions, and their handlers may run again.",
        "Set `synchronous_standby_names`.",
    ),
    FindingDoc::new(
        "postgres-encoding",
        "The database is not in UTF-8. Texts of errors are kept in ASCII, and a payload with characters that the \
         encoding lacks cannot be passed to a statement as text.",
        "Create the database with `ENCODING UTF8`.",
    ),
    FindingDoc::new(
        "postgres-few-connections",
        "Statements of handlers wait for a connection while they hold a claim.",
        "Raise `connections` or lower `pipeline.concurrency`.",
    ),
    FindingDoc::new(
        "postgres-fsync-off",
        "`fsync` or `full_page_writes` is off. A power failure loses completions, or the database.",
        "Turn both on.",
    ),
    FindingDoc::new(
        "postgres-pooler-shares-sessions",
        "A pooler shares server sessions between transactions. Settings and prepared statements of a session get lost.",
        "Use the session mode of the pooler, with room for as many sessions as the message states.",
    ),
    FindingDoc::new(
        "postgres-read-only",
        "The server is a standby, or its transactions are read-only.",
        "Name the primary.",
    ),
    FindingDoc::new(
        "postgres-schema-creators",
        "Other roles may create objects in the schema of the store, which workers do not need and an attacker could \
         use.",
        "`REVOKE CREATE ON SCHEMA` from the roles that the message names.",
    ),
    FindingDoc::new(
        "postgres-search-path-writable",
        "Sessions of handlers resolve names in schemas where other roles may create functions and operators. A \
         statement of the handler could run theirs.",
        "`REVOKE CREATE ON SCHEMA … FROM PUBLIC`; or set a `search_path` without these schemas for the role, and name \
         schemas in statements.",
    ),
    FindingDoc::new(
        "postgres-server-name-unchecked",
        "`sslmode=verify-ca` accepts every server with a certificate of the same authority.",
        "Write `sslmode=verify-full`, unless the authority is for this server alone.",
    ),
    FindingDoc::new("postgres-too-old", "The server is older than Postgres 13.", "Update it."),
];
