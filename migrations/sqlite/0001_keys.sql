-- What this file was written as. `format` is the version of the records below, `key_format` of the encoding that is
-- hashed into keys, `fence_floor` the largest fence of all records that were removed.
CREATE TABLE onceward_meta (
    name  TEXT    NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Scopes are written once and kept: keys refer to them by number, which saves their names in every row.
CREATE TABLE onceward_scopes (
    id   INTEGER NOT NULL PRIMARY KEY,
    name TEXT    NOT NULL UNIQUE
) STRICT;

-- One row a key. Times are microseconds since the epoch, in the clock of the host.
--
-- Keys are hashes, so a row stored by its key would lie anywhere, and each batch would touch as many pages as it has
-- rows. Rows are stored in the order of their first claim instead: a claim touches one random page, of the small unique
-- index, and its completion none.
CREATE TABLE onceward_keys (
    id          INTEGER NOT NULL PRIMARY KEY,
    scope       INTEGER NOT NULL,
    key         BLOB    NOT NULL,             -- 16 bytes
    state       INTEGER NOT NULL,             -- 0 absent, 1 pending, 2 failed, 3 terminal, 4 completed, 5 dead
    started     INTEGER NOT NULL,             -- 1: a lapse of the lease counts as an attempt
    owner       BLOB    NOT NULL,             -- 16 bytes, fresh for every claim
    fence       INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    lost        INTEGER NOT NULL,
    generation  INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,             -- 0 in states without a lease
    first_at    INTEGER NOT NULL,
    written_at  INTEGER NOT NULL,
    ttl         INTEGER NOT NULL,             -- microseconds the record outlives its last write or its lease
    expires_at  INTEGER NOT NULL,
    reason      INTEGER,                      -- why it failed for good
    fingerprint BLOB,                         -- 16 bytes
    error       TEXT,
    result      BLOB,
    UNIQUE (scope, key)
) STRICT;

CREATE INDEX onceward_keys_by_expiry ON onceward_keys (expires_at);

-- How far sources without a broker have been read.
CREATE TABLE onceward_checkpoints (
    scope       INTEGER NOT NULL,
    source      TEXT    NOT NULL,
    incarnation TEXT    NOT NULL,
    position    INTEGER NOT NULL,
    evidence    TEXT    NOT NULL,
    written_at  INTEGER NOT NULL,
    PRIMARY KEY (scope, source)
) STRICT, WITHOUT ROWID;
